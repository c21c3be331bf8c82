"""A large training that is not there: its events, made up from a seed, for screens and sinks. Measures nothing."""
