"""What trained runs draw, and how each picture is scored: figures of single cases, so that runs are compared
in pairs.

Every drawing shows the same held-out cases from the same noise. A figure of a case is a hit (0 or 1) or a
number; hits stand in files as strings of digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....encoder import SubjectEncoder
from ....evaluation.statistics import as_text, top1
from ....hosts.diffusers import SubjectSlot
from ....storage.files import replacing
from ....training.frozen import default_device
from ....training.mechanisms import mechanism
from ....training.objective import denoising_losses
from ...drawing.identity import Identity
from ...drawing.references import sample_crop
from ...drawing.shown import Shown, windows
from ...models.model import new_scheduler
from ...models.pixels import encode_pictures
from ...models.scorers import drawn_as
from ...models.world import Attached
from ...train.denoising import TextStates, predictor
from ..cases import Case, background, draw_cases, true_drawings
from ..judges import NEAREST, Counts, Judges, identity_hits, prompt_hits, subjects_of
from ..likeness import among_twins
from .matrix import NOUNS, PERSON, PET, Drawing, Run, base_pictures, pictures_of
from .runs import Place, load_encoder

CASE_SEEDS = {(PERSON,): 9100, (PET,): 9200, (PERSON, PET): 9300}
"""Subjects of their own: none of `acceptance` or of another page."""

TIMESTEPS = (100, 300, 500, 700, 900)
"""Where the prediction's error is measured."""

TWINS = Counts().twins
EXPRESSION = "expression"
"""What the prompt's judge calls it; a figure of its own beside the rest of the prompt."""

Figures = dict[str, Any]
"""By name: hits as a string, numbers as a list, or the hits of each of the prompt's attributes."""


class Bench:
    """Draws and scores what runs at a place have learned."""

    def __init__(self, judges: Judges, place: Place) -> None:
        self.judges, self.place = judges, place
        self._cases: dict[tuple[str, ...], list[Case]] = {}
        self._encoders: dict[Run, SubjectEncoder] = {}

    def cases(self, words: tuple[str, ...]) -> list[Case]:
        if words not in self._cases:
            self._cases[words] = draw_cases(words, self.place.size.cases, seed=CASE_SEEDS[words])
        return self._cases[words]

    def encoder(self, run: Run) -> SubjectEncoder:
        if run not in self._encoders:
            self._encoders[run] = load_encoder(self.place, self.judges.world, run)
        return self._encoders[run]

    def base(self, words: tuple[str, ...]) -> np.ndarray:
        """What the base model draws, without a subject."""
        return self._kept(f"pictures/{base_pictures(words)}", lambda: self._generate(self.cases(words), []))

    def measure(self, words: tuple[str, ...]) -> dict[str, Figures]:
        """What figures are seen against: the base model's without a subject, and those of the true drawings,
        through the autoencoder."""
        cases, world = self.cases(words), self.judges.world
        pictures = {"base": self.base(words), "truth": world.decode(encode_pictures(true_drawings(cases)))}
        return {name: self.scored(rgb, cases, words) for name, rgb in pictures.items()}

    def pictures(self, name: str) -> np.ndarray | None:
        """Pictures that were drawn earlier, (n, 32, W, 3) uint8."""
        return self._read(f"pictures/{name}")

    def draw(self, run: Run, drawing: Drawing) -> Figures:
        """The figures of one drawing of a trained run; its pictures are kept."""
        return KINDS[drawing.kind](self, run, drawing)

    def rendered(
        self,
        run: Run,
        drawing: Drawing,
        cases: list[Case],
        attached: Sequence[Attached],
        prompts: Sequence[str] = (),
    ) -> np.ndarray:
        """The pictures of a drawing, drawn once. prompts: in place of the cases' own."""
        return self._kept(
            f"pictures/{pictures_of(run, drawing)}", lambda: self._generate(cases, attached, prompts)
        )

    def attached(
        self, run: Run, crops: np.ndarray, word: str, value: float = 1.0, more: Sequence[np.ndarray] = ()
    ) -> Attached:
        """A subject a case from crops (n, …), at a value of the control. more: further crops of each."""
        own, encoder, world = mechanism(run.mechanism), self.encoder(run).cpu(), self.judges.world
        settings = own.settings(encoder.config, value)
        with torch.no_grad():
            tokens = torch.cat([encoder(world.features(each)) for each in (crops, *more)], dim=1)
        return Attached(encoder, tokens, word, settings, mechanism=own)

    def scored(self, rgb: np.ndarray, cases: list[Case], words: tuple[str, ...]) -> Figures:
        """identity: all subjects of a picture are recognised among those of all cases; NEAREST: by the other
        judge. twins: the subject is recognised among near-twins, where there is one. prompt: what all figures
        of the picture show of the prompt, by attribute. outside: mean change against the base model's picture
        away from the figures, of 255."""
        judges = self.judges
        known = [top1(self.similarity(rgb, words, word), torch.arange(len(cases))) for word in words]
        nearest = [identity_hits(judges, rgb, cases, word, NEAREST) for word in words]
        found: Figures = {
            "identity": as_text(torch.stack(known).all(dim=0)),
            NEAREST: as_text(torch.stack(nearest).all(dim=0)),
        }
        if len(words) > 1:
            found |= {word: as_text(hit) for word, hit in zip(words, known, strict=True)}
        else:
            subjects = subjects_of(cases, words[0])
            found["twins"] = as_text(among_twins(judges.recognisers[words[0]], rgb, subjects, TWINS))
        shown = [prompt_hits(judges, rgb, cases, number) for number in range(len(words))]
        found["prompt"] = {
            name: as_text(torch.stack([each[name] for each in shown]).all(dim=0)) for name in shown[0]
        }
        change = np.abs(rgb.astype(float) - self.base(words)).mean(-1)
        found["outside"] = [
            round(float(each[there].mean()), 3) for each, there in zip(change, background(cases), strict=True)
        ]
        return found

    def similarity(self, rgb: np.ndarray, words: tuple[str, ...], word: str) -> Tensor:
        """How much the subject of each case's picture looks like that of every case, to the recogniser.
        (n, n)"""
        shown = [case.shown(word) for case in self.cases(words)]
        seen = self.judges.recognisers[word].embed(windows(rgb, shown))
        return torch.einsum("ncd,nd->nc", torch.from_numpy(self.looks(words, word)), seen)

    def looks(self, words: tuple[str, ...], word: str, workers: int = 1) -> np.ndarray:
        """What every case's subject looks like to the recogniser, drawn as each case's prompt says: all
        pictures of these cases are compared with them. workers: processes that draw. (n, n, 64) float32"""

        def made() -> np.ndarray:
            cases, recogniser = self.cases(words), self.judges.recognisers[word]
            draw = partial(_drawn_as, tuple(case.figure(word).identity for case in cases))
            with ProcessPoolExecutor(workers) as pool:
                drawn = pool.map(draw, [case.shown(word) for case in cases])
                return np.stack([recogniser.looks(each).numpy() for each in drawn])

        return self._kept(f"looks/{' '.join(words)} {word}", made)

    def _generate(
        self, cases: list[Case], attached: Sequence[Attached], prompts: Sequence[str] = ()
    ) -> np.ndarray:
        texts = list(prompts) or [case.prompt for case in cases]
        sampling = self.place.size.sampling
        if default_device().type != "cpu":  # all at once, where launches take the time
            sampling = replace(sampling, batch=len(cases))
        seeds, width = [case.seed for case in cases], cases[0].latent_width
        with self.on_device(attached):
            return self.judges.world.generate(texts, seeds, attached, sampling, latent_width=width)

    @contextmanager
    def on_device(self, attached: Sequence[Attached]) -> Iterator[None]:
        """Within it, the UNet and the encoders are on the GPU, if there is one."""
        modules = [self.judges.world.unet, *(item.encoder for item in attached)]
        for module in modules:
            module.to(default_device())
        try:
            yield
        finally:
            for module in modules:
                module.cpu()

    def _path(self, name: str) -> Path:
        return self.place.drawn / f"{name}.npz"

    def _read(self, name: str) -> np.ndarray | None:
        path = self._path(name)
        if not path.exists():
            return None
        with np.load(path) as stored:
            return stored["kept"]

    def _kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        found = self._read(name)
        if found is None:
            found = make()
            self._path(name).parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path(name)) as temporary:
                np.savez_compressed(temporary, kept=found)
        return found


def _drawn_as(identities: Sequence[Identity], shown: Shown) -> np.ndarray:
    """`drawn_as` of each; runs in a worker process. (2n, 28, 28, 3) uint8"""
    return np.concatenate([drawn_as(each, shown) for each in identities])


def _crops(cases: list[Case], word: str) -> np.ndarray:
    return np.stack([case.reference(word) for case in cases])


def further_crops(cases: list[Case], word: str, number: int) -> list[np.ndarray]:
    """More pictures of each case's subject: `number` times (n, …), the first ones whatever the number."""
    rng = np.random.default_rng(9400)
    return [np.stack([sample_crop(rng, case.figure(word).identity) for case in cases]) for _ in range(number)]


def _alone(bench: Bench, run: Run, drawing: Drawing) -> Figures:
    """One subject a picture, at a value of the control."""
    cases, word = bench.cases((drawing.word,)), drawing.word
    attached = bench.attached(run, _crops(cases, word), word, drawing.value)
    return bench.scored(bench.rendered(run, drawing, cases, [attached]), cases, (word,))


def _pair(bench: Bench, run: Run, drawing: Drawing) -> Figures:
    """A person and a pet, each with its own run."""
    cases = bench.cases((PERSON, PET))
    attached = [
        bench.attached(own, _crops(cases, word), word, drawing.value)
        for own, word in ((run.partner, PERSON), (run, PET))
    ]
    return bench.scored(bench.rendered(run, drawing, cases, attached), cases, (PERSON, PET))


def _references(bench: Bench, run: Run, drawing: Drawing) -> Figures:
    """`value` pictures of each subject, the case's own first."""
    cases, word = bench.cases((drawing.word,)), drawing.word
    more = further_crops(cases, word, int(drawing.value) - 1)
    attached = bench.attached(run, _crops(cases, word), word, more=more)
    return bench.scored(bench.rendered(run, drawing, cases, [attached]), cases, (word,))


def _to_next(similarity: Tensor, number: int) -> list[Tensor]:
    """How much each case's picture looks like its own subject, like the next case's, and so on: (n,) each."""
    return [similarity.roll(-shift, dims=1).diagonal() for shift in range(number)]


def _mixed(bench: Bench, run: Run, drawing: Drawing) -> Figures:
    """Each subject mixed evenly with the next one, or not at all (value 0). first, second: the picture
    looks more like that one than like a third; both: like each of the two."""
    cases, word = bench.cases((drawing.word,)), drawing.word
    crops = _crops(cases, word)
    other = [np.roll(crops, -1, axis=0)] if drawing.value else []
    attached = bench.attached(run, crops, word, more=other)
    rgb = bench.rendered(run, drawing, cases, [attached])
    similarity = bench.similarity(rgb, (word,), word)
    own, second, third = _to_next(similarity, 3)
    hits = {"first": own > third, "second": second > third, "both": (own > third) & (second > third)}
    return {name: as_text(hit) for name, hit in hits.items()}


def _noun(bench: Bench, run: Run, drawing: Drawing) -> Figures:
    """The subject on another noun. own: the picture looks more like its subject than like the next case's.
    fits: for every noun, how much more it looks like the people whom that fits than like the others."""
    cases, word, noun = bench.cases((drawing.word,)), drawing.word, drawing.noun
    prompts = [re.sub(rf"\b{re.escape(word)}\b", noun, case.prompt) for case in cases]
    attached = bench.attached(run, _crops(cases, word), noun)
    rgb = bench.rendered(run, drawing, cases, [attached], prompts)
    found = bench.scored(rgb, cases, (word,))
    del found["outside"]  # the base model's picture there is of the trained word
    similarity = bench.similarity(rgb, (word,), word)
    own, second = _to_next(similarity, 2)
    found |= {"own": as_text(own > second), "fits": {}}
    for name in NOUNS:
        fits = torch.tensor([name in case.figure(word).identity.nouns for case in cases])
        if fits.any() and not fits.all():
            nearer = similarity[:, fits].mean(dim=1) - similarity[:, ~fits].mean(dim=1)
            found["fits"][name] = [round(float(value), 4) for value in nearer]
    return found


@torch.no_grad()
def _error(bench: Bench, run: Run, drawing: Drawing) -> Figures:
    """error: of the prediction on each case's true drawing, the plain mean square over TIMESTEPS."""
    cases, word, world = bench.cases((drawing.word,)), drawing.word, bench.judges.world
    attached = bench.attached(run, _crops(cases, word), word)
    latents, scheduler = encode_pictures(true_drawings(cases)), new_scheduler()
    noise = torch.randn(len(TIMESTEPS), *latents.shape, generator=torch.Generator().manual_seed(0))
    errors = torch.zeros(len(cases))
    device, batch = default_device(), bench.place.size.sampling.batch
    with bench.on_device([attached]):
        slot = SubjectSlot.install(world.unet, mechanism(run.mechanism).attention)
        try:
            for start in range(0, len(cases), batch):
                rows = slice(start, start + batch)
                context, pooled, ids = world.text([case.prompt for case in cases[rows]])
                text = TextStates(context.to(device), pooled.to(device))
                predict = predictor(world.unet, text, torch.float32)
                with slot.bind(attached.rows(rows).bind(ids, world.unet)):
                    for index, timestep in enumerate(TIMESTEPS):
                        at = torch.full((len(context),), timestep, device=device)
                        pair = latents[rows].to(device), noise[index, rows].to(device)
                        weight = torch.ones(len(context), 1, 1, device=device)
                        loss = denoising_losses(predict, scheduler, *pair, at, weight)["denoise"]
                        errors[rows] += loss.cpu() / len(TIMESTEPS)
        finally:
            slot.remove()
    return {"error": [round(float(error), 6) for error in errors]}


KINDS: dict[str, Callable[[Bench, Run, Drawing], Figures]] = {
    "alone": _alone,
    "pair": _pair,
    "references": _references,
    "mixed": _mixed,
    "noun": _noun,
    "error": _error,
}
"""What a run may be asked for."""
