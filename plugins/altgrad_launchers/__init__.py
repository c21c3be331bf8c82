"""How a run's worker is started."""
