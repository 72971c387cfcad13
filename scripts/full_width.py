#!/usr/bin/env python3
"""Two photographs through `prepare`, a step of training and `evaluate`, at full width with random weights.

    python scripts/full_width.py FOLDER [--resolution 512]

FOLDER takes 25 GB, and keeps what was made, so that a second run begins at the step. Prints seconds, and the
peak of memory: of a GPU where there is one, else of this process. `evaluate` draws a picture in one step with
the file that was trained, in which nobody is to be seen. The packaged recogniser judges it, and the
photograph's mirror image.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from PIL import Image, ImageOps  # noqa: E402
from skimage import data  # noqa: E402

from nested_attention.evaluation.run import Output  # noqa: E402
from nested_attention.evaluation.settings import DrawSettings, EvaluatedSubject, ScorerSettings  # noqa: E402
from nested_attention.evaluation.tasks import Task, carry_out, folder_task, sdxl_task  # noqa: E402
from nested_attention.paths import SMALL_WORLD  # noqa: E402
from nested_attention.training.frozen import BaseModel  # noqa: E402
from nested_attention.training.prepare.run import prepare  # noqa: E402
from nested_attention.training.prepare.settings import PrepareSettings, SourceSettings  # noqa: E402
from nested_attention.training.records import memory_peak  # noqa: E402
from nested_attention.training.run import train  # noqa: E402
from nested_attention.training.sdxl import write_random  # noqa: E402
from nested_attention.training.settings import PhaseSettings, TrainSettings, ValidationSettings  # noqa: E402

CAPTIONS = {
    "astronaut": "a photo of a person in an orange space suit before a flag",
    "chelsea": "a photo of a pet that looks into the camera",
}
WORDS = {"astronaut": "person", "chelsea": "pet"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resolution", type=int, default=512)
    given = parser.parse_args()
    folder: Path = given.folder
    if not (folder / "sdxl").exists():
        with _timed("SDXL with random weights"):
            write_random(folder / "sdxl", SMALL_WORLD / "tokenizer")
    model = BaseModel(base=str(folder / "sdxl"))  # type: ignore[arg-type]
    for name, word in WORDS.items():
        pictures = folder / name
        pictures.mkdir(exist_ok=True)
        Image.fromarray(getattr(data, name)()).save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text(CAPTIONS[name])
        settings = PrepareSettings(
            model=model,
            output=folder / f"{name}-prepared",
            recipe="faces" if word == "person" else "pets",
            source=SourceSettings(path=pictures),
            word=word,
            resolution=given.resolution,
            batch=1,
        )
        with _timed(f"prepare {name}"):
            prepare(settings)
    phase = PhaseSettings(data=folder / "astronaut-prepared", batch=1, steps=1, warmup=1)
    run = TrainSettings(
        model=model,
        output=folder / f"run-{time.time():.0f}",
        name="astronaut",
        licence="CC0",
        phases=(phase,),
        validation=ValidationSettings(every=0),
        workers=0,
    )
    with _timed("one step, and its checkpoint"):
        train(run)
    print((run.output / "phase-1" / "log.jsonl").read_text())
    photograph = folder / "astronaut" / "astronaut.png"
    with _timed("evaluate what it draws"):
        output = Output(run.output / "drawn")
        _judged(sdxl_task(_drawn(run, photograph, given.resolution), ScorerSettings(), output), output)
    with _timed("evaluate a mirror image"):
        pictures = run.output / "mirrored" / "pictures" / "astronaut"
        pictures.mkdir(parents=True)
        Image.open(photograph).save(pictures / "ref_1.png")
        ImageOps.mirror(Image.open(photograph)).save(pictures / "out.png")
        _judged(folder_task(pictures.parent, ScorerSettings()), Output(run.output / "mirrored"))


def _drawn(run: TrainSettings, photograph: Path, side: int) -> DrawSettings:
    subject = EvaluatedSubject(name="astronaut", references=(photograph,), truths=(photograph,))
    return DrawSettings(
        model=run.model, encoder=run.file, subjects=(subject,), prompts=("a photo of a {1}",),
        attention_scales=(1.0,), width=side, height=side, steps=1,
    )  # fmt: skip


def _judged(task: Task, output: Output) -> None:
    """Carry a task out, and print what the packaged recogniser found."""
    carry_out(task, output, "Full width, random weights")
    (group,) = json.loads(output.figures.read_text(encoding="utf-8"))["groups"]
    found = group["figures"]["packaged"]
    print(f"likeness {found['sim_ref']['mean']:.2f}, recognised {found['recognised']['rate']:.0%}")


class _timed:
    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *error: object) -> None:
        seconds = time.monotonic() - self._started
        print(f"{self._what}: {seconds:.0f} s, peak so far {memory_peak():.1f} GB", flush=True)


if __name__ == "__main__":
    main()
