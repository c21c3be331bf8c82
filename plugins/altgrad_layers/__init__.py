"""Kinds of layers beyond the linear ones that ``convert`` can make cast."""
