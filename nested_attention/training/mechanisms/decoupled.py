"""Decoupled cross-attention, as IP-Adapter has it (Ye et al., arXiv 2308.06721).

    out_q = softmax(Q Kᵀ / √d) V + scale · softmax(Q K_imgᵀ / √d) V_img

It is `anchored.anchored_attention` of subjects that are everywhere.
"""

from __future__ import annotations

from ...encoder import SubjectEncoderConfig
from ...settings import SubjectSettings
from .mechanism import SCALE, Mechanism


class Decoupled(Mechanism):
    """An attention over the subject's tokens is added to the text's in the whole picture; no word is read."""

    name, title, control, injection = "decoupled", "Decoupled CA", SCALE, "decoupled"

    def settings(self, config: SubjectEncoderConfig, control: float = 1.0) -> SubjectSettings:
        return SubjectSettings(injection="everywhere", strength=control).trained_as(config)
