"""experiments.toml -> checked configuration -> run folders -> workers."""
