"""Nested attention, the paper's mechanism: `attention.nested_cross_attention`."""

from __future__ import annotations

from .mechanism import Mechanism


class Nested(Mechanism):
    """The word's value is an attention of the query over the subject's tokens (Eq. 2 to 4)."""

    name, title = "nested", "Nested Attention"
