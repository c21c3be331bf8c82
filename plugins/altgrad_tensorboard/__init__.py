"""Metrics for TensorBoard."""
