"""How a subject counts in a picture: all that Apply Subject and `personalize` let one choose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeGuard, TypeVar

from torch import Tensor

from .anchored import AnchoredSubject
from .attention import BoundSubject, Norm
from .blocks import parse_blocks
from .encoder import SubjectEncoderConfig
from .errors import NestedAttentionError
from .placeholders import SubjectWord
from .prompt import ANGLED, check_word
from .regions import OVERSHOOT

WhenMissing = Literal["error", "warn"]
RegionMode = Literal["mask", "auto", "none"]
Injection = Literal["trained", "nested", "anchored", "everywhere"]
REGION_MODES: tuple[RegionMode, ...] = ("mask", "auto", "none")
INJECTIONS: tuple[Injection, ...] = ("trained", "nested", "anchored", "everywhere")
AnySettings = TypeVar("AnySettings", bound="SubjectSettings")


@dataclass(frozen=True, eq=False, kw_only=True)
class SubjectSettings:
    """The defaults attach a subject to the word its encoder was trained on, as it was trained, with λ = 1.

    word: what carries the subject in a prompt, bare or in place of `<name>`; None: the encoder's.
    name: what `<name>` calls it in a prompt, with the brackets or without; None: the word.
    attention_scale: λ > 0 (Sec. 5.1).
    alpha: α > 0, the norm of v*_q as a multiple of |V[s*]| (Sec. 3.2); None: no regularisation; "trained":
        the encoder's.
    norm: of which vectors norms are taken, all heads together or each; None: the encoder's.
    strength: in [0, 1]; 0 leaves pictures as they are, bit for bit.
    start, end: the part of the sampling in which the subject counts, 0 ≤ start ≤ end ≤ 1.
    region: where in the picture it counts, (pictures, h, w) or (h, w) in [0, 1] at any resolution; None:
        everywhere.
    region_mode: "mask" takes the region that is given; "auto" finds one in the word's attention where
        none is given; "none" leaves regions, and all that follows from them, alone.
    bounded: whether queries outside the region do not attend to the word either.
    bound_self_attention: whether self-attention is kept apart between this region and other subjects'.
    blocks: factors on the strength by block of the UNet (`blocks.parse_blocks`).
    when_missing: what happens when no prompt carries the subject.
    apply_to_negative: whether the word in a negative prompt carries it too.
    injection: "nested" replaces the word's value; "anchored" adds the subject where the word is attended
        (`anchored.py`), "everywhere" in the whole picture or region, as IP-Adapter does; "trained": nested
        or anchored, as the encoder was trained.
    weight: w > 0, of what is added. α, norm and `bounded` concern nested subjects only.

    Raises NestedAttentionError that lists every value out of range. The caller adds who asked.
    """

    word: str | None = None
    name: str | None = None
    attention_scale: float = 1.0
    alpha: float | None | Literal["trained"] = "trained"
    norm: Norm | None = None
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    region: Tensor | None = None
    region_mode: RegionMode = "mask"
    bounded: bool = False
    bound_self_attention: bool = False
    blocks: str = "all"
    when_missing: WhenMissing = "error"
    apply_to_negative: bool = False
    injection: Injection = "trained"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.name, str) and (written := ANGLED.fullmatch(self.name.strip())):
            object.__setattr__(self, "name", written[1])
        for field in ("word", "name"):
            given = getattr(self, field)
            if given is not None:
                object.__setattr__(self, field, check_word(given, field))
        wrong = self._out_of_range()
        if wrong:
            raise NestedAttentionError("; ".join(wrong))
        if self.region_mode == "none":
            for field, off in (("region", None), ("bounded", False), ("bound_self_attention", False)):
                object.__setattr__(self, field, off)
        elif self.region is not None:
            object.__setattr__(self, "region", _check_region(self.region))

    def _out_of_range(self) -> list[str]:
        def number(x: Any) -> TypeGuard[float]:
            return isinstance(x, (int, float)) and not isinstance(x, bool)

        wrong: list[str] = []
        if not number(self.attention_scale) or not 0 < self.attention_scale < math.inf:
            wrong.append(f"attention_scale (λ) is {self.attention_scale}; expected above 0, 1 for no change")
        if self.alpha not in (None, "trained") and not (number(self.alpha) and 0 < self.alpha < math.inf):
            wrong.append(f"alpha is {self.alpha}; expected above 0, or None for no regularisation")
        if self.norm not in (None, "inner", "head"):
            wrong.append(f"norm is {self.norm!r}; expected 'inner' or 'head'")
        if not number(self.strength) or not 0 <= self.strength <= 1:
            wrong.append(f"strength is {self.strength}; expected 0 to 1")
        if not (number(self.start) and number(self.end) and 0 <= self.start <= self.end <= 1):
            wrong.append(f"start is {self.start} and end is {self.end}; expected 0 ≤ start ≤ end ≤ 1")
        if self.region_mode not in REGION_MODES:
            wrong.append(
                f"region_mode is {self.region_mode!r}; expected one of {', '.join(map(repr, REGION_MODES))}"
            )
        if self.injection not in INJECTIONS:
            wrong.append(
                f"injection is {self.injection!r}; expected one of {', '.join(map(repr, INJECTIONS))}"
            )
        if not number(self.weight) or not 0 < self.weight < math.inf:
            wrong.append(f"weight is {self.weight}; expected above 0, 1 for the adapter's own")
        if self.when_missing not in ("error", "warn"):
            wrong.append(f"when_missing is {self.when_missing!r}; expected 'error' or 'warn'")
        return wrong

    def trained_as(self: AnySettings, encoder: SubjectEncoderConfig) -> AnySettings:
        """What is left to the encoder, its word, α, norm and injection, filled in."""
        trained: Injection = "anchored" if encoder.injection == "decoupled" else "nested"
        return replace(
            self,
            word=self.word or encoder.word,
            alpha=encoder.alpha if self.alpha == "trained" else self.alpha,
            norm=self.norm or encoder.norm,
            injection=trained if self.injection == "trained" else self.injection,
        )

    @property
    def called(self) -> SubjectWord:
        """Name and word, once the word is known."""
        assert self.word is not None
        return SubjectWord(self.name or self.word, self.word)

    @property
    def always(self) -> bool:
        """Whether the subject counts at every step."""
        return self.start <= 0 and self.end >= 1

    @property
    def auto_region(self) -> bool:
        """Whether its region is to be found."""
        return self.region_mode == "auto" and self.region is None

    @property
    def placed(self) -> bool:
        """Whether it has a region, given or to be found."""
        return self.region is not None or self.auto_region

    def factors(self, sites: Iterable[str]) -> Mapping[str, float]:
        """The factor in [0, 1] on the strength at each site. Raises NestedAttentionError, `parse_blocks`."""
        return parse_blocks(self.blocks, sites)

    def bind(
        self,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        *,
        word: Tensor | None = None,
        factor: float = 1.0,
        token_bias: Tensor | None = None,
        region: Tensor | None = None,
    ) -> BoundSubject:
        """The subject at one cross-attention layer.

        key, value, mask, word, token_bias, region: `BoundSubject`'s, at this layer. factor: on the strength.
        """
        assert self.alpha != "trained", "call trained_as first"
        strength = self.strength * factor
        region = region if strength else None
        if self.injection in ("anchored", "everywhere"):
            return AnchoredSubject(
                key=key,
                value=value,
                mask=mask,
                attention_scale=self.attention_scale,
                strength=strength,
                token_bias=token_bias,
                region=region,
                weight=self.weight,
                everywhere=self.injection == "everywhere",
            )
        return BoundSubject(
            key=key,
            value=value,
            mask=mask,
            word=word,
            alpha=self.alpha,
            attention_scale=self.attention_scale,
            strength=strength,
            token_bias=token_bias,
            region=region,
            bounded=self.bounded and region is not None,
            norm=self.norm or "inner",
        )


def _check_region(region: Any) -> Tensor:
    """(h, w), (pictures, h, w) or (pictures, 1, h, w) → (pictures, h, w) in [0, 1]."""
    found = f"shape {tuple(region.shape)}" if isinstance(region, Tensor) else type(region).__name__
    if isinstance(region, Tensor) and region.dim() == 4 and region.shape[1] == 1:
        region = region[:, 0]
    if not isinstance(region, Tensor) or region.dim() not in (2, 3) or 0 in region.shape:
        raise NestedAttentionError(
            f"the region has {found}; expected a MASK (pictures, height, width). Connect the MASK "
            "output of Load Image (as Mask), of a mask editor or of a segmentation node"
        )
    region = region.detach().float()
    if not bool(((region >= -OVERSHOOT) & (region <= 1 + OVERSHOOT)).all()):  # false for NaN too
        low, high = region.aminmax()
        raise NestedAttentionError(
            f"the region's values go from {float(low):.3g} to {float(high):.3g}; expected 0 (not "
            "here) to 1 (here). Check what made the mask"
        )
    region = region.clamp(0, 1)
    return region if region.dim() == 3 else region[None]
