"""A table format: posit<8,0> from its definition (Gustafson and Yonemoto, 2017, doi 10.14529/jsfi170206).

A posit's bits after the sign are a run of equal bits, the regime, ended by the opposite one; es exponent bits, none here; and
the fraction f. A run of k ones means the power k - 1 of useed = 2^(2^es) = 2, a run of k zeros the power -k, and the value is
useed^power * (1 + f). A negative posit is the two's complement of its magnitude's.
"""

from altgrad_core import TableFormat, hookimpl

ALTGRAD_HOOKSPEC = 1
BITS = 8


def posit(code):
    """Return the value of a code."""
    if code == 0:
        return 0.0
    if code == 2 ** (BITS - 1):
        return float("nan")  # called NaR, not a real
    if code > 2 ** (BITS - 1):
        return -posit(2**BITS - code)
    bits = f"{code:0{BITS}b}"[1:]
    run = len(bits) - len(bits.lstrip(bits[0]))
    power = run - 1 if bits[0] == "1" else -run
    fraction = bits[run + 1 :]
    return 2.0**power * (1 + int(fraction or "0", 2) / 2 ** len(fraction))


@hookimpl
def altgrad_register_formats(register):
    """Offer it; scaling puts the largest magnitude at 4, since a posit is precise around 1."""
    table = [posit(code) for code in range(2**BITS)]
    register(TableFormat(name="posit8_es0", table=table, amax_target=4.0, source="doi 10.14529/jsfi170206"))
