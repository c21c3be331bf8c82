"""Tokens on disk and the batches drawn from them.

Token files are flat little-endian arrays of uint16 (vocabularies up to 65,536) or uint32, memory-mapped, with a
``meta.json`` beside them. A batch is a pure function of (seed, step, micro-step): resuming needs no replay.
"""
