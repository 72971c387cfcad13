"""How well subjects are kept and prompts are followed, measured on the small world's held-out subjects."""
