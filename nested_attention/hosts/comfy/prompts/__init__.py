"""Prompts in ComfyUI: a CLIP that knows which words carry subjects, and the marks in its conditioning."""
