"""Global V: one value a layer in place of the word's, the same for every query (paper, Sec. 5.2).

    v*    = W_V mean_n(t_n)
    v*    ← α · |V[s*]| · v* / |v*|
    out_q = Σ_{s≠s*} P[s] V[s] + P[s*] v*

It is nested attention over a single token, the mean of the encoder's: an attention over one value is that
value. The paper does not say whether this v* is regularised; here it is, as the nested one is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...encoder import SubjectEncoder
from .mechanism import Mechanism, Projections


class GlobalValue(Mechanism):
    """The word's value is the projected mean of the subject's tokens."""

    name, title, unused = "global", "Global V", ("to_key",)

    def project(self, encoder: SubjectEncoder, unet: Any, tokens: Tensor) -> Projections:
        return encoder.project(tokens.mean(dim=1, keepdim=True))
