"""AdamW with weight decay on matrices only."""
