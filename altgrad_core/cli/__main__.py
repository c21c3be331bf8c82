"""``python -m altgrad_core.cli``."""

from altgrad_core.cli.main import main

main()
