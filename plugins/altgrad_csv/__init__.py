"""Metrics as a CSV file."""
