"""Metrics for Weights & Biases."""
