"""What the injection mechanisms have in common: an encoder's tokens become keys and values of every layer,
and an attention reads them beside the text's.

A mechanism decides three things: `project`, which keys and values the layers receive; `attention`, what a
layer computes with them; and `settings`, what its control between identity and prompt changes. What is not
said otherwise is as in nested attention. Its subjects are bound in a `SubjectSlot` that was installed with
its `attention`, for training and for drawing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ...encoder import SubjectEncoder, SubjectEncoderConfig, TrainedInjection
from ...hosts.diffusers.binding import SubjectBinding
from ...hosts.diffusers.processors import Attention
from ...settings import SubjectSettings

Projections = dict[str, tuple[Tensor, Tensor]]
"""Site → keys and values, (1|B, N, inner) each."""


@dataclass(frozen=True)
class Control:
    """What trades identity against the prompt without training. values: where the paper looks (Sec. 5.2).

    default: the value that the mechanism is trained with.
    """

    symbol: str
    values: tuple[float, ...]
    default: float = 1.0


LAMBDA = Control("λ", (1.0, 1.5, 2.0, 2.5, 3.0, 4.0))
SCALE = Control("scale", (0.5, 0.6, 0.7, 0.8, 0.9, 1.0))


class Mechanism:
    """One way of injection. `name` is its key in `MECHANISMS`, `title` the paper's name for it.

    control: None where the paper has none. attention: what a layer computes of the text and the subjects, as
    `attention.nested_cross_attention` does; None: the hosts' own, for nested subjects and those added
    everywhere. unused: parts of an encoder that it neither reads nor trains. injection: what the
    configuration of an encoder trained with it says.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    control: ClassVar[Control | None] = LAMBDA
    attention: ClassVar[Attention | None] = None
    unused: ClassVar[tuple[str, ...]] = ()
    injection: ClassVar[TrainedInjection] = "nested"

    def project(self, encoder: SubjectEncoder, unet: Any, tokens: Tensor) -> Projections:
        """The subject's tokens (B, N, token_dim) as keys and values of every cross-attention layer.

        unet: the frozen model, for mechanisms that read its layers.
        """
        return encoder.project(tokens)

    def settings(self, config: SubjectEncoderConfig, control: float = 1.0) -> SubjectSettings:
        """How a subject counts at a value of the control. At 0 the model is left as it is, bit for bit."""
        if control == 0:  # of λ: no subject
            return SubjectSettings(injection="nested", strength=0.0).trained_as(config)
        return SubjectSettings(injection="nested", attention_scale=control).trained_as(config)

    def bind(
        self, encoder: SubjectEncoder, unet: Any, tokens: Tensor, mask: Tensor, control: float = 1.0
    ) -> SubjectBinding:
        """Subjects of tokens (B, N, token_dim) on the marked words, mask (B, T) bool."""
        projections = self.project(encoder, unet, tokens)
        return SubjectBinding(
            projections=projections, mask=mask, settings=self.settings(encoder.config, control)
        )

    def freeze_unused(self, encoder: SubjectEncoder) -> None:
        """Leave out of the training what the mechanism does not read."""
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(not set(self.unused) & set(name.split(".")))
