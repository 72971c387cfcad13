"""`nested-attention prepare CONFIG`, from the source to the index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from ...errors import NestedAttentionError
from ..frozen import FrozenEncoders, default_device, folder_name, vision_name
from ..reading import read_config
from ..shards import Index, Shard, mean_weight, write_shard
from .encode import Encoding, Journal
from .generate import generate
from .plan import in_shards, look_through
from .recipes import Recipe, blank_picture
from .report import first_rejects, summary, write_held_out, write_report
from .settings import PrepareSettings
from .sources import samples_of


def prepare_from(path: Path, say: Callable[[str], object] = print) -> Index:
    """Prepare what a configuration file describes. What a former run has encoded is used again."""
    return prepare(read_config(path, PrepareSettings), say)


def prepare(settings: PrepareSettings, say: Callable[[str], object] = print) -> Index:
    """Look through the source, encode what is kept, and write shards, index and report.

    It can be stopped at any time, and goes on from the last shard. Raises NestedAttentionError, naming the
    file, for whatever cannot be used, and if nothing is left.
    """
    folder = settings.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _prepare(settings, folder, say)
    except OSError as error:
        raise NestedAttentionError(
            f"{folder} cannot be written or read ({error}); the same command goes on from the last shard"
        ) from error


def _prepare(settings: PrepareSettings, folder: Path, say: Callable[[str], object]) -> Index:
    device = default_device()
    source = settings.source
    if settings.generate is not None:
        source = generate(settings.model, settings.generate, device)
    assert source is not None  # of every recipe but `synthetic`, as the settings make sure
    samples, recipe = samples_of(source, by_folder=settings.recipe == "identities"), Recipe(settings)
    frozen = FrozenEncoders.load(settings.model, device)
    fingerprints = frozen.fingerprints()
    plan = look_through(samples, recipe, frozen.tokenize, fingerprints, folder / "looked.jsonl")
    if not plan.kept:
        page = write_report(folder, recipe, plan, None)
        raise NestedAttentionError(
            f"none of {len(samples)} pictures can be used. The first: {first_rejects(plan.rejects)}. All of "
            f"them, and what to do, are in {page}"
        )
    journal = Journal(folder)
    encoding = Encoding(recipe, frozen, journal)
    with tqdm(total=len(plan.kept), desc="encoding", unit="picture", disable=None) as bar:
        shards = tuple(encoding.shard(group, folder, bar.update) for group in in_shards(plan, settings.shard))
    index = Index(
        word=settings.word,
        domain=settings.domain,
        features=settings.features,
        resolution=settings.resolution,
        base=folder_name(settings.model.base),
        latents=_scaling(frozen),
        frozen=fingerprints,
        blank=_blank(folder, frozen, settings),
        shards=shards,
        mean_weight=_mean_weight(folder, shards),
        vision=vision_name(settings.model),
    )
    index.write(folder)
    write_held_out(folder / "held_out", recipe, plan)
    page = write_report(folder, recipe, plan, index)
    journal.finish(shards, index.blank)
    for line in summary(plan, recipe, page):
        say(line)
    return index


def _scaling(frozen: FrozenEncoders) -> dict[str, float]:
    config = frozen.vae.config
    shift = getattr(config, "shift_factor", None)
    return {"scaling_factor": config.scaling_factor, "shift_factor": shift or 0.0}


def _mean_weight(folder: Path, shards: Sequence[Shard]) -> float:
    mean = mean_weight(folder, shards)
    if mean == 0 and any(not shard.held_out for shard in shards):
        raise NestedAttentionError(
            "every NAME.weight.png is black, so that nothing would count in the loss; expected white where a "
            "picture counts fully. Take them out, or invert them"
        )
    return mean or 1.0


def _blank(folder: Path, frozen: FrozenEncoders, settings: PrepareSettings) -> str:
    """Write what takes the place of a dropped picture and of a dropped caption; the file's name."""
    context, pooled = frozen.encode_captions([""])
    features = frozen.encode_references([blank_picture()], settings.features)
    tensors = {"features": features, "context": context, "pooled": pooled}
    kept = {name: tensor.to("cpu", torch.bfloat16) for name, tensor in tensors.items()}
    return write_shard(folder, kept)[0]
