"""Drawn data sets: pictures, captions as token ids, subject masks and reference crops, cached on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import cache as once
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...paths import PACKAGE
from ..drawing.canvas import Part
from ..drawing.identity import KINDS, Identity, Person, Pet, sample
from ..drawing.picture import Picture, Rendered, render
from ..drawing.prompts import caption_and_phrases, sample_identities, sample_picture, subject_words
from ..drawing.references import close_up, sample_crop
from ..models.tokenizer import TOKENS, load_tokenizer
from .labels import FIGURE_LABELS, figure_labels, setting_labels

ALONE: dict[str, dict[str, float]] = {
    "base": {"person": 0.53, "pet": 0.47},
    "person": {"person": 1.0},
    "pet": {"pet": 1.0},
}
TOGETHER: dict[str, dict[str, float]] = {
    "base": {"person+pet": 0.55, "person+person": 0.45},
    "person": {"person+pet": 0.4, "person+person": 0.6},
    "pet": {"person+pet": 1.0},
}
"""Who is in a stage's pictures of one figure, and of two."""

LOSS_WEIGHTS: dict[Part, float] = {
    Part.BACKGROUND: 0.5,
    Part.BODY: 1.0,
    Part.HAIR: 2.5,
    Part.FACE: 3.0,
    Part.EYES: 6.0,
    Part.MOUTH: 3.0,
    Part.EARS: 3.0,
    Part.ACCESSORY: 3.0,
}
"""Weight of an art pixel in the loss: faces are small, and what tells two of them apart is smaller."""

_DRAWS = ("data.py", "folder.py", "labels.py", "pose_data.py", "scorers.py")
"""Beside the drawings' own code, what decides which are made."""

UNKNOWN = LOSS_WEIGHTS[Part.BACKGROUND]
"""Weight of an art pixel of somebody whom neither the prompt nor the reference describes."""


def loss_weight_of(part: np.ndarray) -> np.ndarray:
    """The weight of each art pixel in the loss, by the part that it shows. (32, W) → (32, W) float32"""
    return np.asarray([LOSS_WEIGHTS[each] for each in Part], np.float32)[part]


def by_cell(pixels: np.ndarray) -> np.ndarray:
    """The mean over each latent cell. (32, W) → (16, W/2)"""
    height, width = pixels.shape
    return pixels.reshape(height // 2, 2, width // 2, 2).mean((1, 3))


@dataclass(frozen=True)
class Pictures:
    """A set of pictures of equal width W as arrays; the first axis counts pictures."""

    rgb: np.ndarray  # (n, 32, W, 3) uint8
    described: np.ndarray  # (n, 77) uint16: token ids of a caption that describes who is there
    plain: np.ndarray  # (n, 77) uint16: token ids of the prompt without a description
    described_words: np.ndarray  # (n, 2) int16: positions of the subjects' words, −1 where there is no second
    plain_words: np.ndarray  # (n, 2) int16
    described_ends: np.ndarray  # (n, 2) int16: the last token of the phrase about each subject
    plain_ends: np.ndarray  # (n, 2) int16
    figure_labels: np.ndarray  # (n, 2, labels) int8: FIGURE_LABELS, −1 where one does not apply
    setting_labels: np.ndarray  # (n, 2) int8: SETTING_LABELS
    loss_weight: np.ndarray  # (n, 16, W/2) float16: weight of each latent cell in the loss
    masks: np.ndarray  # (n, 2, 16, W/2) bool: which latent cells show each subject
    wanted: np.ndarray  # (n,) int8: which of the figures is the subject in question
    reference: np.ndarray  # (n, 28, 28, 3) uint8: a crop of it from another picture


_NOUNS = tuple(dict.fromkeys(Person.NOUNS + Pet.NOUNS))


def _word_positions(ids: list[int], nouns: set[int], number: int) -> list[int]:
    found = [position for position, token in enumerate(ids) if token in nouns][:number]
    return found + [-1] * (2 - len(found))


def _phrase_ends(ids: list[int], phrases: list[str]) -> list[int]:
    """Position of the last token of each phrase: tokens are whole words, so a phrase is a run of ids."""
    ends, start = [], 0
    for phrase in phrases:
        wanted = [token for token in load_tokenizer().encode(phrase)[1:] if token != TOKENS.end]
        while ids[start : start + len(wanted)] != wanted:
            start += 1
            if start > len(ids):
                raise ValueError(f"the phrase {phrase!r} is not in its caption")
        start += len(wanted)
        ends.append(start - 1)
    return ends + [-1] * (2 - len(ends))


_DRAWN = (
    *("rgb", "described", "plain", "described_phrases", "plain_phrases", "figure_labels", "setting_labels"),
    *("loss_weight", "masks", "wanted", "reference", "figures"),
)


def _draw(stage: str, mix: dict[str, float], job: tuple[int, int]) -> Pictures:
    """One chunk of a stage's pictures; runs in a worker process."""
    seed, number = job
    rng = np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {name: [] for name in _DRAWN}
    for _ in range(number):
        kinds = str(rng.choice(list(mix), p=list(mix.values())))
        picture = sample_picture(rng, sample_identities(rng, kinds))
        drawn = render(picture)
        rows["rgb"].append(drawn.rgb)
        described = caption_and_phrases(picture, rng, described=True)
        words = None if stage == "base" else subject_words(picture)
        plain = caption_and_phrases(picture, rng, words=words)
        for name, (text, phrases) in {"described": described, "plain": plain}.items():
            rows[name].append(text)
            rows[f"{name}_phrases"].append(phrases)
        labels = [figure_labels(figure) for figure in picture.figures]
        rows["figure_labels"].append(labels + [[-1] * len(FIGURE_LABELS)] * (2 - len(labels)))
        rows["setting_labels"].append(setting_labels(picture))
        wanted = wanted_figure(picture, stage, rng)
        counts = loss_weight_of(drawn.part) if stage == "base" else loss_weights_for(drawn, wanted)
        rows["loss_weight"].append(by_cell(counts))
        rows["masks"].append([by_cell(drawn.subject == figure) >= 0.5 for figure in (1, 2)])
        rows["wanted"].append(wanted)
        rows["reference"].append(sample_crop(rng, picture.figures[wanted].identity))
        rows["figures"].append(len(picture.figures))
    return _assembled(rows)


def loss_weights_for(drawn: Rendered, wanted: int) -> np.ndarray:
    """`loss_weight_of` a picture in which one figure is learned; the other is anybody's guess, and a guess
    teaches an encoder nothing. (32, W) float32"""
    known = (drawn.subject == 0) | (drawn.subject == wanted + 1)
    return np.where(known, loss_weight_of(drawn.part), np.float32(UNKNOWN))


def wanted_figure(picture: Picture, stage: str, rng: np.random.Generator) -> int:
    """The figure that the stage's encoder is to reproduce: of two people, now the first, now the second."""
    kind = {"person": Person, "pet": Pet}.get(stage, object)
    fitting = [i for i, figure in enumerate(picture.figures) if isinstance(figure.identity, kind)]
    return int(rng.choice(fitting))


def draw_pictures(
    stage: str, number: int, seed: int, *, together: bool = False, workers: int = 2, cache: Path | None = None
) -> Pictures:
    """Draw `number` pictures of a stage, of one figure each or (together) of two, or read them back from
    `cache`."""
    mix = (TOGETHER if together else ALONE)[stage]
    name = f"{stage}-{'two' if together else 'one'}-{number}-{seed}"
    drawn = partial(_draw, stage, mix)
    return cached(cache, name, Pictures, lambda: _joined(in_chunks(drawn, number, seed, workers)))


def draw_both(
    stage: str, number: int, seed: int, *, workers: int = 2, cache: Path | None = None
) -> tuple[Pictures, Pictures]:
    """`number` pictures of one figure, and half as many of two."""
    alone = draw_pictures(stage, number, seed, workers=workers, cache=cache)
    return alone, draw_pictures(stage, number // 2, seed, together=True, workers=workers, cache=cache)


def _joined(parts: Sequence[Pictures]) -> Pictures:
    names = [field.name for field in fields(Pictures)]
    return Pictures(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _assembled(rows: dict[str, list[Any]]) -> Pictures:
    """What has been drawn, with captions as token ids."""
    tokenizer = load_tokenizer()
    nouns = {tokenizer.encode(noun)[1] for noun in _NOUNS}
    ids = {name: tokenizer.encode_all(rows[name]) for name in ("described", "plain")}
    words = {
        name: [
            _word_positions(list(row), nouns, n) for row, n in zip(ids[name], rows["figures"], strict=True)
        ]
        for name in ids
    }
    ends = {
        name: [
            _phrase_ends(list(row), said) for row, said in zip(found, rows[f"{name}_phrases"], strict=True)
        ]
        for name, found in ids.items()
    }
    return Pictures(
        rgb=np.stack(rows["rgb"]),
        described_ends=np.asarray(ends["described"], np.int16),
        plain_ends=np.asarray(ends["plain"], np.int16),
        figure_labels=np.asarray(rows["figure_labels"], np.int8),
        setting_labels=np.asarray(rows["setting_labels"], np.int8),
        loss_weight=np.stack(rows["loss_weight"]).astype(np.float16),
        described=ids["described"],
        plain=ids["plain"],
        described_words=np.asarray(words["described"], np.int16),
        plain_words=np.asarray(words["plain"], np.int16),
        masks=np.asarray(rows["masks"]),
        wanted=np.asarray(rows["wanted"], np.int8),
        reference=np.stack(rows["reference"]),
    )


Drawn = TypeVar("Drawn")


def in_chunks(
    draw: Callable[[tuple[int, int]], Drawn], number: int, seed: int, workers: int, chunk: int = 500
) -> list[Drawn]:
    """`number` examples from `draw`, which gets (seed, number) of a chunk, in `workers` processes."""
    starts = range(0, number, chunk)
    with ProcessPoolExecutor(workers) as pool:
        return list(
            pool.map(draw, [(seed * 1_000_003 + start, min(chunk, number - start)) for start in starts])
        )


@once
def drawing_version() -> str:
    """Changes with the code that decides what is drawn: what an older one drew is drawn anew."""
    avatars = PACKAGE / "avatars"
    files = [*sorted((avatars / "drawing").glob("*.py")), *(avatars / "train" / name for name in _DRAWS)]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:8]


def cached(folder: Path | None, name: str, kind: Callable[..., Drawn], make: Callable[[], Drawn]) -> Drawn:
    """A dataclass of arrays, from the file of that name in `folder` if this version of the drawing code has
    written it, else from `make`."""
    path = folder / f"{name}-{drawing_version()}.npz" if folder else None
    if path and path.exists():
        with np.load(path) as stored:
            return kind(**{name: stored[name] for name in stored.files})
    made = make()
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **vars(made))
        temporary.replace(path)
    return made


@dataclass(frozen=True)
class Crops:
    """Two crops each of subjects, from different pictures; the first axis counts subjects."""

    rgb: np.ndarray  # (n, 2, 28, 28, 3) uint8
    ids: np.ndarray  # (n, 77) uint16: token ids of what captions say of the subject


def draw_crops(number: int, seed: int, *, workers: int = 2, cache: Path | None = None) -> Crops:
    """Draw crops of `number` random people and pets, or read them back from `cache`."""

    def draw() -> Crops:
        rows = [row for part in in_chunks(_draw_crops, number, seed, workers) for row in part]
        return Crops(
            np.stack([rgb for rgb, _ in rows]), load_tokenizer().encode_all([text for _, text in rows])
        )

    return cached(cache, f"crops-{number}-{seed}", Crops, draw)


def _draw_crops(job: tuple[int, int]) -> list[tuple[np.ndarray, str]]:
    """One chunk; runs in a worker process."""
    seed, number = job
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        kind: type[Person] | type[Pet] = Person if rng.integers(2) == 0 else Pet
        identity: Identity = sample(kind, rng, "train")  # type: ignore[type-var]
        rgb = np.stack([sample_crop(rng, identity) for _ in range(2)])
        rows.append((rgb, " ".join([*identity.description(), str(rng.choice(identity.nouns))])))
    return rows


@dataclass(frozen=True)
class CloseUps:
    """A crop and the close-up of each subject; the first axis counts subjects."""

    reference: np.ndarray  # (n, 28, 28, 3) uint8: a crop of it from some picture
    rgb: np.ndarray  # (n, 28, 28, 3) uint8: its `close_up`
    loss_weight: np.ndarray  # (n, 28, 28) float16: of each art pixel of the close-up


def draw_close_ups(
    word: str, number: int, seed: int, *, workers: int = 2, cache: Path | None = None
) -> CloseUps:
    """Draw `number` people or pets (`word`), or read them back from `cache`."""

    def draw() -> CloseUps:
        chunks = in_chunks(partial(_draw_close_ups, word), number, seed, workers)
        rows = [row for chunk in chunks for row in chunk]
        reference, rgb, weight = (np.stack(column) for column in zip(*rows, strict=True))
        return CloseUps(reference, rgb, weight.astype(np.float16))

    return cached(cache, f"close-ups-{word}-{number}-{seed}", CloseUps, draw)


def _draw_close_ups(word: str, job: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """One chunk; runs in a worker process."""
    seed, number = job
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        identity: Identity = sample(KINDS[word], rng, "train")  # type: ignore[type-var]
        rgb, part = close_up(identity)
        rows.append((sample_crop(rng, identity), rgb, loss_weight_of(part)))
    return rows
