"""Scaling policies: a scale for each tensor, row or block. ``tensor_policies`` and ``block_policies`` hold them."""
