"""Ways to bring an encoder's tokens into a model's cross-attention, trained and drawn alike (Sec. 5.2).

Each is a file, behind the interface of `mechanism.py`; they share the encoder, the data and the loss.
"""

from __future__ import annotations

from ...encoder import SubjectEncoderConfig
from ...errors import NestedAttentionError
from .decoupled import Decoupled
from .global_value import GlobalValue
from .mechanism import Mechanism
from .multiple import MultipleTokens
from .nested import Nested
from .simple import SimpleAdapter

__all__ = ["MECHANISMS", "Mechanism", "mechanism", "mechanism_of"]

MECHANISMS: dict[str, Mechanism] = {
    each.name: each for each in (Nested(), Decoupled(), SimpleAdapter(), GlobalValue(), MultipleTokens())
}
"""By name; the paper's own first."""


def mechanism(name: str) -> Mechanism:
    """Raises NestedAttentionError for a name that none has."""
    if name not in MECHANISMS:
        raise NestedAttentionError(f"no such mechanism: {name!r}. The mechanisms are {', '.join(MECHANISMS)}")
    return MECHANISMS[name]


def mechanism_of(config: SubjectEncoderConfig) -> Mechanism:
    """The one that an encoder's configuration says it is trained with."""
    return MECHANISMS[config.injection]
