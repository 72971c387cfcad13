"""Drawn data sets: pictures, captions as token ids, subject masks and reference crops, cached on disk."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..identity import Identity, Person, Pet, attributes, sample
from ..picture import render
from ..prompts import caption, prompt, sample_identities, sample_picture
from ..references import sample_crop
from ..tokenizer import load_tokenizer

MIXES: dict[str, dict[str, float]] = {
    "base": {"person": 0.40, "pet": 0.34, "person+pet": 0.20, "person+person": 0.06},
    "person": {"person": 0.75, "person+pet": 0.25},
    "pet": {"pet": 0.75, "person+pet": 0.25},
}
"""Which pictures a stage sees, by who is in them."""


@dataclass(frozen=True)
class Pictures:
    """A set of pictures as arrays; the first axis counts pictures."""

    rgb: np.ndarray  # (n, 32, 32, 3) uint8
    described: np.ndarray  # (n, 77) uint16: token ids of a caption that describes the identities
    plain: np.ndarray  # (n, 77) uint16: token ids of the prompt without a description
    described_words: (
        np.ndarray
    )  # (n, 2) int16: positions of the subjects' words, −1 where there is no second one
    plain_words: np.ndarray  # (n, 2) int16
    masks: np.ndarray  # (n, 2, 16, 16) bool: which latent cells show each subject
    reference: np.ndarray  # (n, 20, 20, 3) uint8: a crop of the subject in question, from another picture


_NOUNS = tuple(dict.fromkeys(Person.NOUNS + Pet.NOUNS))


def _word_positions(ids: list[int], nouns: set[int], number: int) -> list[int]:
    found = [position for position, token in enumerate(ids) if token in nouns][:number]
    return found + [-1] * (2 - len(found))


def _draw(kinds_of: tuple[str, int, int]) -> dict[str, list]:
    """One chunk of a stage's pictures; runs in a worker process."""
    stage, seed, number = kinds_of
    rng = np.random.default_rng(seed)
    mix = MIXES[stage]
    rows: dict[str, list] = {
        name: [] for name in ("rgb", "described", "plain", "masks", "reference", "figures")
    }
    for _ in range(number):
        kinds = str(rng.choice(list(mix), p=list(mix.values())))
        picture = sample_picture(rng, sample_identities(rng, kinds))
        drawn = render(picture)
        subject = drawn.subject.reshape(16, 2, 16, 2).transpose(0, 2, 1, 3).reshape(16, 16, 4)
        rows["rgb"].append(drawn.rgb)
        rows["described"].append(caption(picture, rng, described=True))
        rows["plain"].append(caption(picture, rng) if stage == "base" else prompt(picture, rng))
        rows["masks"].append([(subject == 1).sum(-1) >= 2, (subject == 2).sum(-1) >= 2])
        rows["reference"].append(sample_crop(rng, _wanted(picture, stage)))
        rows["figures"].append(len(picture.figures))
    return rows


def _wanted(picture, stage: str):  # type: ignore[no-untyped-def]
    """The identity that the stage's encoder is to reproduce."""
    kind = {"person": Person, "pet": Pet}.get(stage, object)
    return next(figure.identity for figure in picture.figures if isinstance(figure.identity, kind))


def draw_pictures(
    stage: str, number: int, seed: int, *, workers: int = 2, cache: Path | None = None
) -> Pictures:
    """Draw `number` pictures of a stage, or read them back from `cache`."""
    path = cache / f"{stage}-{number}-{seed}.npz" if cache else None
    if path and path.exists():
        with np.load(path) as stored:
            return Pictures(**{name: stored[name] for name in stored.files})
    chunk = 500
    jobs = [
        (stage, seed * 1_000_003 + start, min(chunk, number - start)) for start in range(0, number, chunk)
    ]
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(_draw, jobs))
    rows = {name: [row for part in parts for row in part[name]] for name in parts[0]}
    tokenizer = load_tokenizer()
    nouns = {tokenizer.encode(noun)[1] for noun in _NOUNS}
    ids = {name: tokenizer.encode_all(rows[name]) for name in ("described", "plain")}
    words = {
        name: [
            _word_positions(list(row), nouns, n) for row, n in zip(ids[name], rows["figures"], strict=True)
        ]
        for name in ids
    }
    pictures = Pictures(
        rgb=np.stack(rows["rgb"]),
        described=ids["described"],
        plain=ids["plain"],
        described_words=np.asarray(words["described"], np.int16),
        plain_words=np.asarray(words["plain"], np.int16),
        masks=np.asarray(rows["masks"]),
        reference=np.stack(rows["reference"]),
    )
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **vars(pictures))
        temporary.replace(path)
    return pictures


def draw_crops(number: int, seed: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Crops of random identities, their descriptions, and their attributes (−1 where another kind's)."""
    rng = np.random.default_rng(seed)
    names = [*attributes(Person), *(f"pet_{name}" for name in attributes(Pet))]
    crops, texts, labels = [], [], np.full((number, len(names)), -1, np.int64)
    for row in range(number):
        kind: type[Person] | type[Pet] = Person if rng.integers(2) == 0 else Pet
        identity: Identity = sample(kind, rng, "train")  # type: ignore[type-var]
        crops.append(sample_crop(rng, identity))
        texts.append(" ".join([*identity.description(), str(rng.choice(identity.nouns))]))
        offset = 0 if kind is Person else len(attributes(Person))
        for index, name in enumerate(attributes(kind)):
            labels[row, offset + index] = getattr(identity, name)
    return np.stack(crops), texts, labels
