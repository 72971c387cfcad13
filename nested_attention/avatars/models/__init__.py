"""The networks of the small world: a tiny SDXL, a vision encoder, a ControlNet, a LoRA, and the judges."""
