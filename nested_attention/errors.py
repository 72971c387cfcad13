"""The one error the library raises for input it cannot use."""

from __future__ import annotations


class NestedAttentionError(ValueError):
    """Bad input: the message names the thing, what was found, what was expected, and what to do."""
