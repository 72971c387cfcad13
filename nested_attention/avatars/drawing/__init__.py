"""Drawings of the small world: identities, figures, scenes, styles, and the prompts that describe them."""
