"""Built-in named recipes."""
