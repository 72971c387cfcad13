#!/usr/bin/env python3
"""Training on prepared shards against the same model with its frozen encoders in every step, side by side.

    python scripts/training_throughput.py FOLDER [--repeats 3] [--batch 1]

The encoders are real in size (CLIP ViT-H, both of SDXL's text encoders, its autoencoder, random weights),
the UNet is shortened. Steps take turns, so that both meet the same machine; the median counts. Seconds are
this process's CPU time, or a GPU's, which nothing else on the machine changes. FOLDER takes 5 GB and keeps
what was made.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from skimage import data as photographs  # noqa: E402

from nested_attention.hosts.diffusers.processors import SubjectSlot  # noqa: E402
from nested_attention.paths import SMALL_WORLD  # noqa: E402
from nested_attention.training.data import Batch, Examples  # noqa: E402
from nested_attention.training.frozen import BaseModel, FrozenEncoders, load_schedule, load_unet  # noqa: E402
from nested_attention.training.prepare.recipes import Look, Recipe  # noqa: E402
from nested_attention.training.prepare.run import prepare  # noqa: E402
from nested_attention.training.prepare.settings import PrepareSettings, SourceSettings  # noqa: E402
from nested_attention.training.prepare.sources import samples_of  # noqa: E402
from nested_attention.training.sdxl import UNET, write_random  # noqa: E402
from nested_attention.training.settings import EncoderSettings, LossSettings, StartSettings  # noqa: E402
from nested_attention.training.shards import ShardData  # noqa: E402
from nested_attention.training.start import encoder_config, new_encoder  # noqa: E402
from nested_attention.training.subjects import ON_HOST, SubjectNoise, SubjectObjective  # noqa: E402

SHORT = {**UNET, "layers_per_block": 1, "transformer_layers_per_block": [1, 1, 1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1, choices=(1, 2))
    given = parser.parse_args()
    run = Side(given.folder, given.batch)
    for step in (run.prepared, run.online):  # the first of each makes caches and the optimizer's state
        step()
    seconds: dict[str, list[float]] = {"prepared": [], "online": [], "encoders": []}
    for _ in range(given.repeats):
        seconds["prepared"].append(run.timed(run.prepared))
        seconds["online"].append(run.timed(run.online))
        seconds["encoders"].append(run.encoding)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    share = median["encoders"] / median["online"]
    ratio = median["online"] / median["prepared"]
    for name, values in seconds.items():
        each = ", ".join(f"{value:.2f}" for value in values)
        print(f"{name:9} {median[name]:8.2f} s a step of {given.batch}   ({each})")
    print(f"the encoders' share of an online step: s = {share:.3f}")
    print(f"prepared against online: {ratio:.2f} × the samples/s; 0.9 / (1 − s) = {0.9 / (1 - share):.2f}")


class Side:
    """Both ways to train, on the same models, pictures and noise."""

    def __init__(self, folder: Path, batch: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if not (folder / "model").exists():
            write_random(folder / "model", SMALL_WORLD / "tokenizer", SHORT)
        pictures = folder / "pictures"
        pictures.mkdir(exist_ok=True)
        for name in ("astronaut", "chelsea"):
            Image.fromarray(getattr(photographs, name)()).save(pictures / f"{name}.png")
            (pictures / f"{name}.txt").write_text("a photo of a pet")
        model = BaseModel(base=str(folder / "model"))  # type: ignore[arg-type]
        settings = PrepareSettings(
            model=model, output=folder / "prepared", recipe="pets", source=SourceSettings(path=pictures),
            word="pet", resolution=512, square=True, held_out=0,
        )  # fmt: skip
        index = prepare(settings)
        self.frozen = FrozenEncoders.load(model, self.device)
        self.recipe, self.samples = Recipe(settings), samples_of(SourceSettings(path=pictures))
        self.data = ShardData(settings.output, index)
        unet = load_unet(model, torch.bfloat16).to(self.device)
        unet.enable_gradient_checkpointing()
        unet.train()
        config = encoder_config(EncoderSettings(num_queries=256), unet, index, 1280)
        self.encoder = new_encoder(StartSettings(), config, unet, seed=0).to(self.device)
        self.objective = SubjectObjective(
            unet, SubjectSlot.install(unet), load_schedule(model),
            {name: value.to(self.device) for name, value in self.data.blank.items()},
            index.latents, LossSettings(drop_caption=0, drop_picture=0), torch.bfloat16,
        )  # fmt: skip
        noise = SubjectNoise(self.objective.settings, 4, 64, 1000)
        self.examples = Examples(self.data, noise, batch=batch, seed=0)
        self.optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=1e-4, fused=True)
        self.encoding = 0.0

    def timed(self, step: Callable[[], None]) -> float:
        started = self.now()
        step()
        return self.now() - started

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.monotonic()
        return time.process_time()

    def prepared(self) -> None:
        """A step that reads a shard."""
        batch, noise = self.examples[0]
        self.learn(batch, noise)

    def online(self) -> None:
        """A step that reads pictures and captions, and runs every frozen model on them."""
        read, noise = self.examples[0]
        prepared = [self.recipe.prepare(self.samples[row], Look((512, 512))) for row in read["row"].tolist()]
        started = self.now()
        mean, deviation = self.frozen.encode_pictures(torch.stack([each.target for each in prepared]))
        context, pooled = self.frozen.encode_captions(["a photo of a pet"] * len(prepared))
        layer = self.recipe.settings.features
        features = self.frozen.encode_references([each.reference for each in prepared], layer)
        self.encoding = self.now() - started
        encoded = {"latent_mean": mean, "latent_deviation": deviation, "context": context, "pooled": pooled}
        self.learn({**read, **encoded, "features": features}, noise)

    def learn(self, batch: Batch, noise: Batch) -> None:
        moved = [
            {name: value if name in ON_HOST else value.to(self.device) for name, value in each.items()}
            for each in (batch, noise)
        ]
        losses: dict[str, Any] = self.objective(moved[0], {"encoder": self.encoder}, moved[1])
        losses["denoise"].mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


if __name__ == "__main__":
    main()
