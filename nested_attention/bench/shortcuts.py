"""What the ways below the floor do to pictures of the small world, and what they save.

Each is compared with the exact picture from the same noise, and with what running the UNet in bfloat16 does
to it: a shortcut that changes more than that is not worth having by default.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ..avatars.figures.cases import Case, draw_cases
from ..avatars.models import model
from ..avatars.models.model import LATENT, LATENT_CHANNELS, TIME_IDS
from ..avatars.models.tokenizer import load_tokenizer
from ..avatars.models.world import World, load_world
from ..checkpoint import load_subject_encoder
from ..hosts.diffusers.processors import SubjectBinding, SubjectSlot
from ..paths import SMALL_WORLD
from ..pruning import prune_tokens, token_usage
from .report import table
from .timing import Clock

WORD = "person"
TOLERANCES = (0.001, 0.003, 0.01, 0.03, 0.1)
KEPT = (0.75, 0.5, 0.25)
EVERY = (2, 3, 4)


@dataclass(frozen=True)
class Shortcut:
    """One way, over all pictures. difference: mean of the absolute difference in pixel values (0 to 255);
    largest: the mean of it over the worst picture. seconds: of the whole sampling."""

    name: str
    difference: float
    largest: float
    seconds: float


@dataclass(frozen=True, eq=False)
class _Job:
    """Pictures of held-out people; tokens (B, N, width) and their log-weights (B, N)."""

    world: World
    cases: list[Case]
    encoder: Any
    tokens: Tensor
    bias: Tensor | None
    steps: int


def run_shortcuts(
    *,
    pictures: int = 8,
    steps: int = 10,
    clock: Clock = "wall",
    say: Callable[[str], None] = lambda line: None,
) -> list[Shortcut]:
    """The exact pictures first, then bfloat16, then each shortcut."""
    world, encoder = (
        load_world(),
        load_subject_encoder(SMALL_WORLD / f"{WORD}_encoder.safetensors", dtype=torch.float32),
    )
    cases = draw_cases((WORD,), pictures, seed=0)
    crops = np.stack([case.reference(WORD) for case in cases])
    with torch.no_grad():
        tokens = encoder(world.features(crops))
    job = _Job(world, cases, encoder, tokens, None, steps)
    usage = _usage(job)
    say(f"{tokens.shape[1]} tokens a subject, {pictures} pictures, {steps} steps")
    exact, seconds = _draw(job, clock=clock)
    found = [Shortcut("exact, fp32", 0.0, 0.0, seconds)]

    def add(name: str, drawn: tuple[np.ndarray, float]) -> None:
        off = np.abs(drawn[0].astype(float) - exact.astype(float)).mean(axis=(1, 2, 3))
        found.append(Shortcut(name, float(off.mean()), float(off.max()), drawn[1]))
        say(f"{name}: {off.mean():.3f}")

    add("UNet in bfloat16", _draw(job, clock=clock, half=True))
    for tolerance in TOLERANCES:
        add(f"queries below {tolerance:g} skipped", _draw(job, clock=clock, negligible=tolerance))
    for every in EVERY:
        add(f"computed in every {every}. step", _draw(job, clock=clock, every=every))
    for share in KEPT:
        keep = round(share * tokens.shape[1])
        for merge in (False, True):
            how = "merged" if merge else "dropped"
            add(f"{keep} tokens kept, others {how}", _draw(_pruned(job, usage, keep, merge), clock=clock))
    return found


def _pruned(job: _Job, usage: Tensor, keep: int, merge: bool) -> _Job:
    none = torch.zeros(job.tokens.shape[1])
    pairs = [
        prune_tokens(tokens, none, used, keep, merge=merge)
        for tokens, used in zip(job.tokens, usage, strict=True)
    ]
    tokens, bias = (torch.stack(part) for part in zip(*pairs, strict=True))
    return _Job(job.world, job.cases, job.encoder, tokens, bias, job.steps)


def _usage(job: _Job) -> Tensor:
    """(B, N): the largest share each token gets in any layer and step of a sampling from other noise."""
    usage = torch.zeros(job.tokens.shape[:2])
    projections = job.encoder.project(job.tokens)

    def watch(site: Any) -> Callable[..., None]:
        def hook(module: Any, args: Any, query: Tensor) -> None:
            found = token_usage(query, projections[site.name][0], heads=site.heads)
            usage.copy_(torch.maximum(usage, found))

        return hook

    handles = [
        job.world.unet.get_submodule(f"{site.name}.to_q").register_forward_hook(watch(site))
        for site in job.encoder.config.sites
    ]
    try:
        with torch.no_grad():
            _draw(job, clock="wall", noise=1000, guidance=1.0)
    finally:
        for handle in handles:
            handle.remove()
    return usage


@torch.no_grad()
def _draw(
    job: _Job,
    *,
    clock: Clock,
    half: bool = False,
    negligible: float = 0.0,
    every: int = 1,
    noise: int = 0,
    guidance: float = 3.0,
) -> tuple[np.ndarray, float]:
    """→ (B, 32, 32, 3) uint8, and the seconds that the sampling took."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    world, batch = job.world, len(job.cases)
    context, pooled, ids = world.text([case.prompt for case in job.cases])
    empty, empty_pooled, _ = world.text([""])
    mask = torch.from_numpy(ids.astype(np.int64) == load_tokenizer().encode(WORD)[1])
    tokens, bias, guided = job.tokens, job.bias, guidance != 1
    if guided:
        context = torch.cat([empty.expand(batch, -1, -1), context])
        pooled = torch.cat([empty_pooled.expand(batch, -1), pooled])
        mask = torch.cat([torch.zeros_like(mask), mask])
        tokens, bias = tokens.repeat(2, 1, 1), None if bias is None else bias.repeat(2, 1)
    binding = SubjectBinding(
        projections=job.encoder.project(tokens),
        mask=mask,
        alpha=job.encoder.config.alpha,
        token_bias=bias,
        norm=job.encoder.config.norm,
    )
    scheduler = DDIMScheduler(**model.SCHEDULER)
    scheduler.set_timesteps(job.steps)
    shape = (LATENT_CHANNELS, LATENT, LATENT)
    seeds = [noise + number for number in range(batch)]
    x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])
    sizes = torch.tensor([TIME_IDS], dtype=torch.float32).expand(len(context), -1)
    added = {"text_embeds": pooled, "time_ids": sizes}
    start = now()
    precision = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
    with _slot(world, negligible, every) as slot, slot.bind(binding), precision:
        for t in scheduler.timesteps:
            # Both halves in one pass, as pipelines run them.
            twice = torch.cat([x, x]) if guided else x
            out = world.unet(twice, t, context, added_cond_kwargs=added).sample.float()
            if guided:
                base, out = out.chunk(2)
                out = base + guidance * (out - base)
            x = scheduler.step(out, t, x).prev_sample
    seconds = now() - start
    return world.decode(x), seconds


@contextmanager
def _slot(world: World, negligible: float, every: int) -> Iterator[SubjectSlot]:
    slot = SubjectSlot.install(world.unet, negligible=negligible, every=every)
    try:
        yield slot
    finally:
        slot.remove()


def shortcuts_table(found: list[Shortcut]) -> str:
    rows = [[one.name, f"{one.difference:.2f}", f"{one.largest:.2f}", f"{one.seconds:.2f}"] for one in found]
    return table(["way", "difference, of 255", "worst picture", "s"], rows)
