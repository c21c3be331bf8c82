"""The model-agnostic training loop, its probes, alerts and checkpoints."""
