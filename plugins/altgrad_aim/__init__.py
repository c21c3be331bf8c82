"""Metrics, alerts and the configuration as runs of an Aim repository."""
