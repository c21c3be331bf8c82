"""Which operand of which layer is cast to what."""
