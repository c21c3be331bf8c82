"""IEEE P3109's 8-bit formats; those of 3 to 15 bits, and the unsigned ones, are understood by name without it."""
