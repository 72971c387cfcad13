"""The small world: drawn people and pets, a tiny SDXL that draws them, and scorers that recognise them.

Pictures are pixel art of 32×32 *art pixels*, or 48×32 for two figures, shown enlarged. Everything is
deterministic from a seed, so that generation can be demonstrated, tested and measured on any machine without
a download.
"""
