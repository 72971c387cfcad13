"""Nested Attention: a subject attached to one word of the prompt (Patashnik et al., SIGGRAPH 2025)."""

__version__ = "0.1.0"
