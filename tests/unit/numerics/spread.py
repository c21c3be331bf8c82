"""What the laws are tried on: a spread of formats over widths, suffixes and signedness, modes, and draws."""

from hypothesis import settings
from hypothesis import strategies as st

from altgrad_core.numerics import get_format
from altgrad_core.numerics.modes import SATURATIONS
from altgrad_core.numerics.stochastic import Draw

SIGNED = [
    *("e4m3fn", "e5m2", "e4m3", "e3m4", "e4m3fnuz", "e5m2fnuz", "e4m3b11fnuz", "e3m2fn", "e2m3fn", "e2m1fn"),
    *("e0m7f", "e1m6f", "e7m0f", "e8m3", "e6m9", "bf16", "fp16", "tf32", "binary8p4se", "binary6p1sf", "binary5p5se"),
]
UNSIGNED = ["binary8p4ue", "binary6p3uf"]

laws = settings(deadline=None, max_examples=500, derandomize=True, database=None)
formats = st.sampled_from(SIGNED + UNSIGNED).map(get_format)
signed_formats = st.sampled_from(SIGNED).map(get_format)
saturations = st.sampled_from(SATURATIONS)
draws = st.builds(
    Draw, seed=st.integers(0, 2**64), step=st.integers(0, 2**40), name=st.sampled_from(["", "a", "layers.0.fprop.x"])
)
