"""What ``altgrad formats`` shows: facts of a format, its values, comparisons, noise, figures.

Modules are imported by path. ``facts``, ``hardware``, ``listing``, ``page`` and ``layout`` import no torch; what casts
tensors (``compare``, ``sqnr``, ``signals``, ``figure``) imports it when it is used.
"""
