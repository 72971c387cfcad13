"""`nested-attention train CONFIG --dry-run`: the whole model on torch's meta device, and what it would take.

Nothing is loaded and nothing computed: a step runs on tensors that have shapes and no content. Every shape is
checked so, and a step that read a tensor of the device on the host would fail. What lives in memory at once,
and how many operations there are, is counted on the way. Speeds are those counts divided by a card's, so
they are estimates; memory follows from shapes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .. import attention
from ..checkpoint import load_subject_encoder
from ..encoder import SubjectEncoder
from ..hosts.diffusers.processors import SubjectSlot
from . import sdxl
from .data import Batch
from .fp8 import hold_in_fp8
from .frozen import DTYPES
from .settings import PhaseSettings, TrainSettings
from .shards import Index, ShardData
from .start import encoder_config
from .subjects import SubjectObjective

META = torch.device("meta")


@dataclass(frozen=True)
class Card:
    """A GPU: memory in GB, and operations a second in bf16 with sums in fp32, as its maker states them."""

    name: str
    memory: float
    flops: float


CARDS = (Card("RTX 4090", 24, 165e12), Card("A100", 80, 312e12), Card("H100", 80, 989e12))

REACHED = 0.35
"""Share of a card's stated operations a second that a training step of SDXL is assumed to reach."""

TOGETHER = 0.9
"""Share of that which each of eight cards is assumed to reach while they exchange gradients."""

BATCHES = (1, 2, 4, 8, 16)

SET_ASIDE = 1.5
"""GB of a card that CUDA's own code, and gaps between tensors, are assumed to take."""

UNKNOWN_EXAMPLES, UNKNOWN_SIDES = 70_000, (512, 1024)
"""What a phase is assumed to have whose data is not prepared: as many pictures as FFHQ; the paper's sizes."""


@dataclass(frozen=True)
class Step:
    """What one step takes. activations: the most bytes alive at once beside weights, with those gradients
    that are there by then. operations: multiplications and additions."""

    activations: float
    operations: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A phase, in bytes and operations. held: what a GPU holds whatever the batch: frozen weights, and
    trained ones with their gradients, AdamW's two averages, the averaged weights, and a copy in bf16.
    example: of a shard. checkpoint: on the disk, trained weights with AdamW's two averages and the averaged
    weights, and the encoder's file in fp16. one: a step of one example; more: what each further one adds."""

    phase: PhaseSettings
    side: int
    examples: int
    prepared: bool
    frozen: float
    trained: float
    held: float
    example: float
    checkpoint: float
    one: Step
    more: Step

    def memory(self, batch: int) -> float:
        """GB of a GPU, with that many examples on it."""
        activations = self.one.activations + (batch - 1) * self.more.activations
        return (self.held + activations) / 1e9 + SET_ASIDE

    def speed(self, card: Card, cards: int = 1) -> float:
        """Examples a second."""
        return cards * (TOGETHER if cards > 1 else 1) * REACHED * card.flops / self.more.operations

    def largest(self, card: Card) -> int:
        """The most examples that fit; 0 if none does."""
        spare = card.memory - self.memory(1)
        return 0 if spare < 0 else 1 + int(spare * 1e9 / self.more.activations)


def estimate(settings: TrainSettings) -> list[Estimate]:
    """Build and run each phase on the meta device. Raises what a real run would for shapes that do not
    fit."""
    unet = _new_unet(_unet_config(settings.model.base), DTYPES[settings.precision])
    found: list[Estimate] = []
    for number, phase in enumerate(settings.phases):
        index = Index.read(phase.data) if (phase.data / "index.json").exists() else None
        found.append(_phase(settings, phase, index, unet, UNKNOWN_SIDES[min(number, 1)]))
    return found


def _new_unet(config: Any, dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with META:
            return UNet2DConditionModel.from_config(config).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def _unet_config(base: str) -> dict[str, Any]:
    """Of the base model, where it lies on this machine; else SDXL's."""
    path = Path(base)
    if path.is_dir():
        config: dict[str, Any] = UNet2DConditionModel.load_config(path, subfolder="unet")
        return config
    return sdxl.UNET


def _phase(
    settings: TrainSettings, phase: PhaseSettings, index: Index | None, unet: Any, side: int
) -> Estimate:
    known = index or _unknown(side)
    batch = _assumed(side, unet) if index is None else _largest(phase.data, index)
    encoder = _encoder(settings, unet, known, batch["features"].shape[-1])
    encoder.qformer.requires_grad_(not phase.freeze_qformer)
    trained = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    kept = sum(parameter.numel() for parameter in encoder.parameters()) - trained
    one, two = (_measured(settings, unet, encoder, batch, rows) for rows in (1, 2))
    examples = UNKNOWN_EXAMPLES
    if index is not None:
        examples = sum(len(shard.rows) for shard in index.shards if not shard.held_out)
    frozen = _frozen_bytes(settings, unet)
    return Estimate(
        phase=phase,
        side=known.resolution,
        examples=examples,
        prepared=index is not None,
        frozen=frozen,
        trained=trained,
        held=frozen + trained * (4 + 4 + 8 + 4 + 2) + kept * (4 + 2),
        checkpoint=trained * (4 + 8 + 4 + 2) + kept * (4 + 2),
        example=sum(tensor.numel() * tensor.element_size() for tensor in batch.values()),
        one=one,
        more=Step(two.activations - one.activations, two.operations - one.operations),
    )


def _frozen_bytes(settings: TrainSettings, unet: Any) -> float:
    if settings.fp8:
        unet = _new_unet(unet.config, unet.dtype)
        hold_in_fp8(unet)
    return sum(parameter.numel() * parameter.element_size() for parameter in unet.parameters())


def _unknown(side: int) -> Index:
    return Index(
        word="person", domain="", features="last_hidden_state", resolution=side, base="",
        latents={"scaling_factor": 1.0, "shift_factor": 0.0}, frozen={}, blank="", shards=(),
    )  # fmt: skip


def _encoder(settings: TrainSettings, unet: Any, index: Index, vision_dim: int) -> SubjectEncoder:
    config = encoder_config(settings.encoder, unet, index, vision_dim)
    if settings.start.path is not None:
        there = load_subject_encoder(settings.start.path).config
        config = replace(there, num_queries=config.num_queries, sites=config.sites)
    with META:
        return SubjectEncoder(config).to(unet.dtype).train()


def _largest(folder: Path, index: Index) -> Batch:
    """Shapes of one row of the largest size in a prepared folder."""
    data = ShardData(folder, index)
    rows = max(zip(data.sizes, data.buckets, strict=True), key=lambda item: item[0][0] * item[0][1])[1]
    read = data.read(torch.as_tensor(rows[:1]), {})
    return {name: tensor if name == "mask" else tensor.to(META) for name, tensor in read.items()}


def _assumed(side: int, unet: Any) -> Batch:
    """Shapes of one row of SDXL's: bf16, but for the sizes and the word's mask."""
    config = unet.config
    latent = config.in_channels, side // 8, side // 8
    shapes = {
        "latent_mean": latent,
        "latent_deviation": latent,
        "loss_weight": latent[1:],
        "context": (sdxl.TOKENS, config.cross_attention_dim),
        "pooled": (config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim,),
        "features": (sdxl.PATCHES, sdxl.VISION_DIM),
    }
    batch = {
        name: torch.empty(1, *shape, dtype=torch.bfloat16, device=META) for name, shape in shapes.items()
    }
    mask = torch.zeros(1, sdxl.TOKENS, dtype=torch.bool)
    mask[:, 4] = True
    return {**batch, "sizes": torch.empty(1, 6, device=META), "mask": mask}


def _measured(settings: TrainSettings, unet: Any, encoder: SubjectEncoder, example: Batch, rows: int) -> Step:
    """Run one step, forwards and backwards."""
    slot = SubjectSlot.install(unet)
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train(settings.gradient_checkpointing)
    scheduler = DDPMScheduler(**sdxl.SCHEDULER)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(META)
    batch = {name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in example.items()}
    if (pictures := settings.loss.references) > 1:
        batch["features"] = batch["features"][:, None].expand(-1, pictures, -1, -1)
        batch["shown"] = torch.empty(rows, pictures, dtype=torch.bool, device=META)
    latent = example["latent_mean"].shape[1:]
    flags = torch.zeros(rows, dtype=torch.bool, device="cpu")
    noise = {
        "latent": torch.empty(rows, *latent, device=META),
        "sampled": torch.empty(rows, *latent, device=META),
        "offset": torch.empty(rows, latent[0], 1, 1, device=META),
        "timestep": torch.empty(rows, dtype=torch.int64, device=META),
        "drop_picture": flags.to(META),
        "drop_caption": flags,
    }
    blank = {name: example[name] for name in ("features", "context", "pooled")}
    scaling = {"scaling_factor": 1.0, "shift_factor": 0.0}
    objective = SubjectObjective(unet, slot, scheduler, blank, scaling, settings.loss)
    alive = _Alive(unet, encoder)
    try:
        with FlopCounterMode(display=False) as counter, alive, _FlashAttention() as flash:
            loss = objective(batch, {"encoder": encoder}, noise)["denoise"].mean()
            loss.backward()
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.shape == parameter.shape
            parameter.grad = None
    finally:
        slot.remove()
        unet.disable_gradient_checkpointing()
    return Step(alive.most, counter.get_total_flops() + flash.operations)


class _Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that are made within it, and the most that were alive at once. Views of
    the weights of `models` are not counted."""

    def __init__(self, *models: nn.Module) -> None:
        super().__init__()
        self.now = self.most = 0
        weights = (parameter for model in models for parameter in model.parameters())
        self._known = {weight.untyped_storage()._cdata for weight in weights}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor.device == META:
                self._note(tensor)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _FlashAttention:
    """Within it, attention is as GPUs run it, without a matrix of queries by keys: on the meta device torch
    would make one. operations: its own, which no other counter sees."""

    def __init__(self) -> None:
        self.operations = 0.0

    def __enter__(self) -> _FlashAttention:
        self._torchs = functional.scaled_dot_product_attention
        self._put(self._attend)
        return self

    def __exit__(self, *error: object) -> None:
        self._put(self._torchs)

    def _put(self, attend: Any) -> None:
        for module in (functional, attention):  # through which everybody calls it
            module.scaled_dot_product_attention = attend  # type: ignore[attr-defined]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *more: Any, **named: Any) -> Tensor:
        return _Attention.apply(query, key, value, self)


class _Attention(torch.autograd.Function):
    """What FlashAttention keeps for its backward pass: its inputs, its output, and a number a query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, counts: _FlashAttention) -> Tensor:
        out = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.counts = counts
        counts.operations += 4 * query.numel() * key.shape[-2]
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        ctx.counts.operations += 10 * query.numel() * key.shape[-2]  # the scores are computed again
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def report(estimates: Sequence[Estimate]) -> list[str]:
    """All figures as lines, with what is assumed."""
    lines: list[str] = []
    for number, each in enumerate(estimates, start=1):
        where = "as prepared" if each.prepared else "not prepared yet: the sizes and count are assumed"
        lines += [
            f"Phase {number}: {each.side} × {each.side} pixels, {each.examples:,} pictures ({where})",
            f"  frozen weights of the base model {each.frozen / 1e9:.2f} GB; besides, the encoder, with "
            f"gradients, AdamW and averages of its {each.trained / 1e6:.1f} million trained parameters, "
            f"{(each.held - each.frozen) / 1e9:.2f} GB",
            f"  shards: {each.example / 1e6:.2f} MB a picture, {each.example * each.examples / 1e9:.1f} GB",
            f"  a checkpoint {each.checkpoint / 1e9:.2f} GB; of each phase `keep` of them stay, and one more "
            "while it is written",
            f"  {each.more.operations / 1e12:.1f} × 10¹² operations a picture",
            "  pictures on a GPU    " + "".join(f"{batch:>10}" for batch in BATCHES),
            "  memory, GB           " + "".join(f"{each.memory(batch):>10.1f}" for batch in BATCHES),
            f"  where several GPUs exchange gradients, {each.trained * 4 / 1e9:.1f} GB more on each",
        ]
        for card in CARDS:
            fits = each.largest(card)
            if not fits:
                lines.append(f"  {card.name}, {card.memory:.0f} GB: does not fit")
                continue
            speeds = [each.speed(card, cards) for cards in (1, 8)]
            days = [each.examples / speed / 86400 for speed in speeds]
            lines.append(
                f"  {card.name}, {card.memory:.0f} GB: {fits} pictures fit; {speeds[0]:.1f} pictures/s, "
                f"{days[0]:.3f} days an epoch; eight of them {speeds[1]:.0f} pictures/s, {days[1]:.3f} days"
            )
    return [
        *lines,
        f"Assumed: {REACHED:.0%} of a card's operations in bf16, {TOGETHER:.0%} of that with eight; "
        f"{SET_ASIDE} GB set aside on each. Memory is counted from shapes, in the precision that is set; "
        "arithmetic in fp32 is several times slower than said here.",
    ]
