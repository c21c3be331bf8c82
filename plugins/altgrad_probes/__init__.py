"""What is measured in every training step."""
