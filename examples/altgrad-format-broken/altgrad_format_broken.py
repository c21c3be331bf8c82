"""A plugin that does not work, on purpose: its table has five values, and 2^bits are needed."""

from altgrad_core import TableFormat, hookimpl


@hookimpl
def altgrad_register_formats(register):
    """Fail: ``altgrad plugins`` says why, and everything else works."""
    register(TableFormat(name="broken", table=[0.0, 0.5, 1.0, 2.0, 4.0]))
