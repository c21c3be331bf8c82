"""Checkpoints in a local folder."""
