"""Scaling policies with one scale a tensor: none, static, current, delayed."""
