"""A GPT-2 style transformer."""
