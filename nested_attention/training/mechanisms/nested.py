"""Nested attention, the paper's mechanism: `attention.nested_cross_attention`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...encoder import SubjectEncoder, SubjectEncoderConfig
from ...settings import SubjectSettings
from .mechanism import LAMBDA, Mechanism, Projections, with_attention_scale


class Nested(Mechanism):
    """The word's value is an attention of the query over the subject's tokens (Eq. 2 to 4)."""

    name, title, control = "nested", "Nested Attention", LAMBDA

    def project(self, encoder: SubjectEncoder, unet: Any, tokens: Tensor) -> Projections:
        return encoder.project(tokens)

    def settings(self, config: SubjectEncoderConfig, control: float = 1.0) -> SubjectSettings:
        return with_attention_scale(config, control)
