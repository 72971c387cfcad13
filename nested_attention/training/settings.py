"""What `nested-attention train` is told: which encoder, from what start, on which data, for how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..attention import Norm
from ..encoder import TrainedInjection
from ..errors import NestedAttentionError
from .frozen import BaseModel
from .reading import at_least
from .records import TrackerName


def _share(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise NestedAttentionError(f"{name} is {value}; expected a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Sizes of the encoder (`SubjectEncoderConfig`'s); the defaults are the paper's for faces. token_dim:
    null is the width of the base model's text, which a start from its cross-attention needs. injection:
    `decoupled` trains an adapter as IP-Adapter does, which attends everywhere, without α and norm.
    """

    num_queries: int = 1024
    width: int = 1280
    depth: int = 4
    heads: int = 20
    head_dim: int = 64
    ff_mult: int = 4
    token_dim: int | None = None
    alpha: float | None = 2.0
    norm: Norm = "inner"
    injection: TrainedInjection = "nested"


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """What training begins with. kind: `scratch`: random weights (the paper's); `cross_attention`: the nested
    keys and values begin as those of the text; `file`: an encoder, or IP-Adapter Plus for SDXL, in `path`,
    which also decides the sizes; if `num_queries` is another one, queries are left out or added. projections:
    whether keys and values begin as the file's, too, or at random."""

    kind: Literal["scratch", "cross_attention", "file"] = "scratch"
    path: Path | None = None
    projections: bool = True

    @property
    def keys_anew(self) -> bool:
        """Whether keys begin at random."""
        return self.kind == "scratch" or not self.projections

    def __post_init__(self) -> None:
        if (self.kind == "file") != (self.path is not None):
            raise NestedAttentionError(
                f"kind is {self.kind!r} and path is {self.path}; expected a path with the kind 'file', and "
                "with no other"
            )
        if self.kind != "file" and not self.projections:
            raise NestedAttentionError(f"projections is false and kind {self.kind!r}; expected 'file'")


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What a step minimises: the paper's denoising loss. The shares that are dropped and paired are ours: the
    paper states none.

    min_snr: γ of Min-SNR-γ; null: off. noise_offset: deviation of a shift of the noise, one a channel.
    drop_caption, drop_picture: shares of examples without a caption (and subject), and with a blank picture.
    timestep_power: below 1, timesteps are denser at high noise. pairs: the share of examples whose reference
    is another picture of the subject, at the beginning and at the end of a phase, where there is one.
    references: how many pictures of its subject an example shows at most, every number from 1 alike; their
    tokens are read together, as those of several references are when a picture is drawn.
    """

    min_snr: float | None = None
    noise_offset: float = 0.0
    drop_caption: float = 0.1
    drop_picture: float = 0.05
    timestep_power: float = 1.0
    pairs: tuple[float, float] = (0.5, 0.9)
    references: int = 1

    def __post_init__(self) -> None:
        _share(self, "drop_caption", "drop_picture")
        at_least(self, 1, "references")
        if self.min_snr is not None and self.min_snr <= 0:
            raise NestedAttentionError(f"min_snr is {self.min_snr}; expected a number above 0, or null")
        if not all(0 <= share <= 1 for share in self.pairs):
            raise NestedAttentionError(f"pairs is {list(self.pairs)}; expected two shares from 0 to 1")
        if self.timestep_power <= 0:
            raise NestedAttentionError(f"timestep_power is {self.timestep_power}; expected a number above 0")


@dataclass(frozen=True, kw_only=True)
class PhaseSettings:
    """A stretch of training on one prepared folder. batch: examples a step, of all processes together. steps
    or epochs: how long; minutes: how long at most, of one process. rate: the highest learning rate, reached
    after `warmup` steps; in the last share `decay` of the phase it falls to zero. freeze_qformer: the
    Q-Former stays as it begins, and keys and values alone are trained."""

    data: Path
    batch: int
    steps: int | None = None
    epochs: float | None = None
    rate: float = 1e-4
    warmup: int = 1000
    decay: float = 0.3
    minutes: float | None = None
    freeze_qformer: bool = False

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise NestedAttentionError(
                f"steps is {self.steps} and epochs is {self.epochs}; expected exactly one of them"
            )
        at_least(self, 1, "batch", "warmup")
        for name in ("steps", "epochs", "minutes"):
            length = getattr(self, name)
            if length is not None and length <= 0:
                raise NestedAttentionError(f"{name} is {length}; expected more than 0")
        if not 0 < self.decay <= 1 or self.rate <= 0:
            raise NestedAttentionError(
                f"rate is {self.rate} and decay {self.decay}; expected a rate above 0 and a decay from 0 to 1"
            )

    def steps_for(self, examples: int) -> int:
        """Steps of the phase on that many examples."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * examples / self.batch))


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """every: steps between validations; 0: none. subjects: how many of those held out. sheet_steps: sampling
    steps of the pictures on the sheet; 0: no sheet. guidance: theirs."""

    every: int = 1000
    subjects: int = 8
    sheet_steps: int = 20
    guidance: float = 5.0

    def __post_init__(self) -> None:
        at_least(self, 0, "every", "sheet_steps")
        at_least(self, 1, "subjects")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One run. output: its folder; the encoder is written to `output`/`name`.safetensors.

    licence, source: what the file will say: under which licence it is given on, and where. precision: of the
    frozen UNet, and of arithmetic; what is trained stays in fp32. fp8: the UNet's weights are held in 8 bits.
    whiten_keys: keys are trained in coordinates in which queries differ alike in every direction (`keys.py`).
    clip, weight_decay, ema, parts: see TrainerOptions. workers: processes that read examples.
    """

    model: BaseModel
    output: Path
    name: str
    licence: str
    source: str = ""
    phases: tuple[PhaseSettings, ...]
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    start: StartSettings = field(default_factory=StartSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    precision: Literal["bf16", "fp32"] = "bf16"
    fp8: bool = False
    whiten_keys: bool = False
    gradient_checkpointing: bool = True
    clip: float = 1.0
    weight_decay: float = 0.01
    ema: float = 0.9999
    seed: int = 0
    save_every: int = 1000
    keep: int = 2
    workers: int = 2
    parts: int = 1
    trackers: tuple[TrackerName, ...] = ()

    def __post_init__(self) -> None:
        if not self.phases:
            raise NestedAttentionError("phases is empty; expected at least one")
        if self.phases[0].freeze_qformer and self.start.kind != "file":
            raise NestedAttentionError(
                f"start.kind is {self.start.kind!r} and the first phase has freeze_qformer: a Q-Former of "
                "random weights would stay random; begin with a file, or let it learn"
            )
        if not self.name or "/" in self.name:
            raise NestedAttentionError(f"name is {self.name!r}; expected a file name without ending")
        at_least(self, 1, "save_every", "keep", "parts")
        if self.clip <= 0:
            raise NestedAttentionError(
                f"clip is {self.clip}; expected the largest norm of the gradient, more than 0; a large "
                "number clips nothing"
            )
        at_least(self, 0, "workers", "seed", "weight_decay")
        _share(self, "ema")

    @property
    def file(self) -> Path:
        """The trained encoder."""
        return self.output / f"{self.name}.safetensors"
