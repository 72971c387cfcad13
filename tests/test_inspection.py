"""What an observer keeps: the mechanism's own values, within its bound, for any batch, size and part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from second_gpu import SECOND, SecondGPU
from tiny_sdxl import STEPS, make_encoder, make_pipeline, make_subject
from torch import Tensor

from nested_attention.anchored import AnchoredSubject, anchor, anchored_addition, shared
from nested_attention.attention import (
    BoundSubject,
    nested_cross_attention,
    nested_value,
    nested_weights,
    plain_attention,
    text_weights,
)
from nested_attention.bench.memory import LiveBytes
from nested_attention.encoder import SubjectEncoder
from nested_attention.errors import NestedAttentionError
from nested_attention.hosts.diffusers import AppliedSubject, Recorder, personalize
from nested_attention.inspection import recording as recording_module
from nested_attention.inspection.document import document
from nested_attention.inspection.draw import PALETTE, overlay, word_pictures
from nested_attention.inspection.looks import looks, reference
from nested_attention.inspection.maps import CHANGE, COLOURS, WORD, Selection, SubjectMaps
from nested_attention.inspection.measure import Measured, token_colours
from nested_attention.inspection.measure import measure as measured_in_chunks
from nested_attention.inspection.observed import ObservedLayer, ObservedSubject
from nested_attention.inspection.page import page
from nested_attention.inspection.recording import WORK, Recorded, Recording, Tally, Watch
from nested_attention.regions import area_mean
from nested_attention.storage.tensors import read_tensors
from nested_attention.subject import Subject

HEADS, WIDTH, TEXT = 2, 16, 7
SITE = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bound(tokens: int = 5, at: int = 3, rows: int = 1, **settings: Any) -> BoundSubject:
    mask = torch.zeros(rows, TEXT, dtype=torch.bool)
    mask[:, at] = True
    pair = randn(2, 1, tokens, WIDTH, seed=at)
    return BoundSubject(key=pair[0], value=3 * pair[1], mask=mask, **settings)


def measure(*row: Any, weights: int = 2**20) -> Measured:
    """All queries of a row together, whatever the chunks they were measured in."""
    chunks = list(measured_in_chunks(*row, heads=HEADS, columns=1, weights=weights))
    stops = [0, *(at.stop for at, _ in chunks)]
    assert [at.start for at, _ in chunks] == stops[:-1] and stops[-1] == row[0].shape[1]
    names = ("word", "change", "place", "nested")
    return Measured(*(torch.cat([getattr(one, name) for _, one in chunks]) for name in names))


def made(tokens: int = 5, images: int = 1, **more: Any) -> Subject:
    return Subject(randn(tokens, 6, seed=9), torch.zeros(tokens), "person", "made up", images, **more)


def observed(grid: tuple[int, int], subjects: dict[str, BoundSubject], **more: Any) -> ObservedLayer:
    rows = len(next(iter(subjects.values())).mask)
    whole = (0, 0, *grid, *grid)
    seen = [ObservedSubject(n, s.mask, s.mask, lambda s=s: s) for n, s in subjects.items()]
    options = {"site": SITE, "step": 0, "places": [(row, whole) for row in range(rows)], **more}
    query = randn(rows, grid[0] * grid[1], WIDTH)
    text = randn(2, rows, TEXT, WIDTH, seed=1)
    return ObservedLayer(
        grid=grid, query=query, key=text[0], value=text[1], heads=HEADS, subjects=seen, **options
    )


def on_second(layer: ObservedLayer) -> ObservedLayer:
    """The layer on a GPU of its own."""

    def bind(one: ObservedSubject) -> Callable[[], BoundSubject | None]:
        subject = one.bind()
        assert subject is not None
        there = replace(subject, key=subject.key.to(SECOND), value=subject.value.to(SECOND))
        return lambda: there

    moved = {name: getattr(layer, name).to(SECOND) for name in ("query", "key", "value")}
    return replace(layer, **moved, subjects=[replace(one, bind=bind(one)) for one in layer.subjects])


def record(layers: list[ObservedLayer], subject: Subject, pictures: int = 1, **watch: Any) -> Recording:
    names = dict.fromkeys(one.name for layer in layers for one in layer.subjects)
    who = [Recorded(name, name, "person", [subject], len(subject.tokens) // subject.images) for name in names]
    steps = 1 + max(layer.step for layer in layers)
    kept = Recording(Watch(**{"layers": "all", **watch}), who, pictures=pictures, steps=steps)
    for layer in layers:
        kept.see(layer)
    return kept


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attention_scale": 3.0, "alpha": None, "norm": "head"},
        {"strength": 0.4, "region": torch.rand(1, 12, generator=torch.Generator().manual_seed(0))},
        {"bounded": True, "region": torch.rand(1, 12, generator=torch.Generator().manual_seed(0))},
        {"token_bias": torch.tensor([0.0, -1, 0, -torch.inf, 0])},
    ],
)
def test_measured_values_are_the_mechanisms_own(settings: dict[str, Any]) -> None:
    q, (k, v) = randn(1, 12, WIDTH), randn(2, 1, TEXT, WIDTH, seed=1)
    subject, other = bound(**settings), bound(at=5, attention_scale=2.0)
    found = measure(q, k, v, [subject, other], 0, weights=HEADS * TEXT * 5)  # in chunks
    probs = text_weights(q, k, [subject, other], heads=HEADS)
    assert torch.allclose(probs.sum(-1), torch.ones(1, HEADS, 12), atol=1e-6)
    assert torch.allclose(found.word, probs[0, :, :, 3].mean(0), atol=1e-6)
    nested = nested_weights(q, subject, heads=HEADS)
    assert torch.allclose(found.nested, nested[0].mean(0), atol=1e-6)
    assert torch.allclose(found.nested.sum(-1), torch.ones(12), atol=1e-5)
    both = nested_cross_attention(q, k, v, [subject, other], heads=HEADS)
    without = nested_cross_attention(q, k, v, [other], heads=HEADS)
    if not subject.reweights:  # P is the same, so that the two differ by P·(v*_q − V[s*]) alone
        assert torch.allclose(found.change, (both - without)[0].norm(dim=-1), atol=1e-4)
    assert found.change.min() > 0 or settings.get("region") is not None


def test_an_anchored_subject_shows_its_place_and_what_it_adds_there() -> None:
    q, (k, v) = randn(1, 12, WIDTH), randn(2, 1, TEXT, WIDTH, seed=1)

    def anchored(at: int, **settings: Any) -> AnchoredSubject:
        like = bound(at=at)
        return AnchoredSubject(key=like.key, value=like.value, mask=like.mask, weight=0.7, **settings)

    subject, beside = anchored(3, attention_scale=2.0), anchored(5)
    nested = bound(at=1, attention_scale=3.0)
    found = measure(q, k, v, [nested, subject, beside], 1, weights=HEADS * TEXT * 5)  # in chunks
    places = shared([anchor(q, k, one, heads=HEADS) for one in (subject, beside)], [subject, beside])
    assert torch.allclose(found.place, places[0][0], atol=1e-6)
    both = anchored_addition(q, k, [subject, beside], heads=HEADS)
    added = nested_value(q, beside, heads=HEADS).transpose(1, 2).flatten(2) * 0.7 * places[1][..., None]
    assert torch.allclose(found.change, (both - added)[0].norm(dim=-1), atol=1e-4)
    probs = text_weights(q, k, [nested], heads=HEADS)  # an anchored subject leaves P alone
    assert torch.allclose(found.word, probs[0, :, :, 3].mean(0), atol=1e-6)


def test_the_change_is_zero_where_the_value_is_the_words_own() -> None:
    q, (k, v) = randn(1, 9, WIDTH), randn(2, 1, TEXT, WIDTH, seed=1)
    same = BoundSubject(key=k[:, 3:4], value=v[:, 3:4], mask=bound().mask, alpha=None)
    assert measure(q, k, v, [same], 0).change.abs().max() < 1e-4
    assert torch.allclose(
        nested_cross_attention(q, k, v, [same], heads=HEADS), plain_attention(q, k, v, heads=HEADS), atol=1e-5
    )


def test_maps_are_means_over_layers_and_steps_and_tokens_the_strongest_of_them() -> None:
    subject = made()
    layers = [
        observed((4, 6), {"alice": bound()}, site=f"up_blocks.{n}", step=step)
        for n, step in ((0, 0), (1, 0), (0, 1))
    ]
    for layer, scale in zip(layers, (1.0, 2.0, 3.0), strict=True):
        layer.query.mul_(scale)
    seen = record(layers, subject, tokens=3).finish()
    (maps,) = seen.subjects
    each = [
        measure(x.query, x.key, x.value, [bound()], 0) for x in layers
    ]  # layers 0 and 1 in step 0, layer 0 in step 1
    assert seen.spans == ((0, 0), (1, 1))
    of_site = torch.stack([each[0].word, each[2].word]).mean(0)
    found = maps.mean(WORD, Selection(layers="up_blocks.0"), seen.spans)
    assert torch.allclose(found[0].flatten(), of_site, atol=1e-6)
    first = maps.mean(CHANGE, Selection(steps=(0, 0)), seen.spans)
    assert torch.allclose(first[0].flatten(), (each[0].change + each[1].change) / 2, atol=1e-5)
    colours = maps.mean(COLOURS, Selection(layers="up_blocks.1"), seen.spans)
    assert torch.allclose(colours.flatten(1).T, each[1].nested @ token_colours(subject), atol=1e-5)
    mean = torch.stack([one.nested for one in each]).mean(0)  # (24, 5)
    top = mean.topk(3, dim=1)
    assert torch.equal(maps.indices.flatten(1).T.long(), top.indices)
    assert torch.allclose(maps.weights.flatten(1).T, top.values, atol=1e-6)
    x, y = (4 + 0.5) / 6, (2 + 0.5) / 4
    assert [token for token, _ in maps.at((x, y))] == top.indices[2 * 6 + 4].tolist()
    with pytest.raises(NestedAttentionError, match="no map has layers 'mid'.*grids 4x6 and steps 0 to 1"):
        maps.mean(WORD, Selection(layers="mid"), seen.spans)


def test_pictures_subjects_and_rows_are_kept_apart() -> None:
    pair = {"alice": bound(rows=3), "bob": bound(rows=3, at=5)}
    pair["bob"].mask[0] = False
    layer = observed((3, 5), pair, places=[(1, (0, 0, 3, 5, 3, 5))] * 1 + [(0, (0, 0, 3, 5, 3, 5))] * 2)
    seen = record([layer], made(), pictures=2).finish()
    assert [(one.picture, one.title) for one in seen.subjects] == [(0, "alice"), (0, "bob"), (1, "alice")]
    alone = measure(layer.query[:1], layer.key[:1], layer.value[:1], [bound()], 0)
    whole = seen.subjects[2].mean(WORD, Selection(), seen.spans)
    assert torch.allclose(whole.flatten(), alone.word, atol=1e-6)


def test_the_colours_of_a_subject_are_found_once_for_all_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands of tokens each time takes seconds."""
    asked = []
    monkeypatch.setattr(
        recording_module, "token_colours", lambda subject: asked.append(subject) or token_colours(subject)
    )
    layer = observed((3, 5), {"alice": bound(rows=3), "bob": bound(rows=3, at=5)})
    alice, bob = made(), made()
    who = [Recorded("alice", "alice", "person", [alice], 5), Recorded("bob", "bob", "person", [bob], 5)]
    recording = Recording(Watch(layers="all"), who, pictures=3, steps=1)
    recording.see(layer)
    assert asked == [alice, bob] and len(recording._kept) == 6


@pytest.mark.parametrize("gpus", [(0, 1, 1, 0), (1, 0, 0, 1), (1, 1, 0, 0)])
def test_what_another_gpu_samples_adds_to_the_same_maps(gpus: tuple[int, ...]) -> None:
    """ComfyUI gives each GPU some of the prompts, and not the same ones in every step."""

    def seen(gpus: Sequence[int], **watch: Any) -> SubjectMaps:
        layers = []
        for number, gpu in enumerate(gpus):
            grid = ((4, 6), (2, 3))[number % 2]
            layer = observed(grid, {"alice": bound()}, step=number // 2, places=[(0, (0, 0, 4, 6, 4, 6))])
            layer.query.mul_(1 + number)
            layers.append(on_second(layer) if gpu else layer)
        return record(layers, made(), **watch).finish().subjects[0]

    with SecondGPU():
        one, several = seen((0, 0, 0, 0)), seen(gpus)
    assert torch.allclose(several.maps[SITE], one.maps[SITE], atol=1e-6)
    assert torch.equal(several.indices, one.indices)
    assert torch.allclose(several.weights, one.weights, atol=1e-6)


def test_what_another_thread_samples_adds_to_the_same_maps() -> None:
    """ComfyUI's threads for other GPUs are not in inference mode, where its nodes run."""
    layers = [observed((4, 6), {"alice": bound()}, step=step) for step in range(3)]
    expected = record(layers, made()).finish().subjects[0]
    who = [Recorded("alice", "alice", "person", [made()], 5)]
    kept = Recording(Watch(layers="all"), who, pictures=1, steps=3)
    with torch.inference_mode(), ThreadPoolExecutor(1) as thread:
        kept.see(layers[0])
        for layer in layers[1:]:
            thread.submit(kept.see, layer).result()
        found = kept.finish().subjects[0]
    assert torch.equal(found.maps[SITE], expected.maps[SITE])


def test_tiles_come_to_their_places_and_overlaps_are_averaged() -> None:
    tally = Tally(1, (4, 8), torch.device("cpu"))
    tally.add(torch.full((1, 4, 4), 1.0), (0, 0, 8, 8, 8, 16))
    tally.add(torch.full((1, 2, 2), 3.0), (0, 4, 8, 8, 8, 16))
    assert torch.equal(tally.mean()[0, 0], torch.tensor([1.0, 1, 2, 2, 3, 3, 0, 0]))


def test_a_layer_whose_grid_changes_has_maps_on_the_finest() -> None:
    """As another node shrinks what is sampled in the first steps, or lets it grow."""
    whole = (0, 0, 8, 12, 8, 12)
    grids = [(2, 3), (4, 6), (4, 6), (3, 4)]
    layers = [
        observed(grid, {"alice": bound(tokens=2)}, step=step, places=[(0, whole)])
        for step, grid in enumerate(grids)
    ]
    each = [
        area_mean(measure(x.query, x.key, x.value, [bound(tokens=2)], 0).word.view(1, *x.grid), (4, 6))
        for x in layers
    ]
    seen = record(layers, made(2)).finish()
    (maps,) = seen.subjects
    assert maps.grids == {SITE: (4, 6)} and len(seen.spans) == 4
    for found, expected in zip(maps.maps[SITE], each, strict=True):
        assert torch.allclose(found[WORD], expected, atol=1e-6)
    room = 2 * Tally.bytes(6, (4, 6)) + 8  # for maps of two groups
    tight = record(layers, made(2), megabytes=2 * room / (1 - WORK) / 1e6)
    assert tight.group == 2 and tight.bytes == TestBound().held(tight)
    (maps,) = tight.finish().subjects
    expected = torch.stack([(each[0] + each[1]) / 2, (each[2] + each[3]) / 2])
    assert maps.grids == {SITE: (4, 6)}
    assert torch.allclose(maps.maps[SITE][:, WORD], expected, atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    height=st.integers(3, 20), width=st.integers(3, 20), rows=st.integers(2, 20), columns=st.integers(2, 20)
)
def test_a_map_of_ones_stays_one_on_any_grid(height: int, width: int, rows: int, columns: int) -> None:
    tally = Tally(2, (rows, columns), torch.device("cpu"))
    tally.add(torch.ones(2, height, width), (0, 0, 64, 48, 64, 48))
    assert torch.allclose(tally.mean(), torch.ones(2, rows, columns), atol=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(height=st.integers(3, 20), rows=st.integers(2, 20), step=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_map_added_some_rows_after_others_is_the_map(height: int, rows: int, step: int, seed: int) -> None:
    maps, part = randn(70, height, 6, seed=seed), (0, 8, 64, 32, 64, 64)
    whole, pieces = (Tally(70, (rows, 16), torch.device("cpu")) for _ in range(2))
    for _ in range(2):
        whole.add(maps, part)
        for start in range(0, height, step):
            at = slice(start, min(start + step, height))
            pieces.add(maps[:, at], part, at, height)
    assert torch.allclose(pieces.mean(), whole.mean(), atol=1e-5)
    assert torch.allclose(pieces.count, whole.count, atol=1e-5)


def test_every_step_is_told_once_it_has_been_seen_the_last_one_too() -> None:
    told: list[int] = []
    kept = Recording(
        Watch(layers="all"), [Recorded("alice", "alice", "person", [made()], 5)], pictures=1, steps=3,
        on_step=lambda recording: told.append(recording.step),
    )  # fmt: skip
    kept.finish()
    assert told == []
    for step in range(3):
        kept.see(observed((2, 2), {"alice": bound()}, step=step))
    kept.finish()
    assert told == [0, 1, 2]


def test_several_references_share_each_place_and_tokens_lead_to_their_pictures() -> None:
    pictures = [torch.rand(9, 7, 3, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
    maps = torch.eye(3)[:, None].expand(-1, 1, -1)  # query n looked at column n
    known = tuple(reference(picture, lambda: maps) for picture in pictures)
    assert known[0].picture.shape == (7, 7, 3)  # as the vision model crops it
    subject = made(6, images=2, references=(known[0], None))
    (one,) = record([observed((3, 4), {"alice": bound(tokens=6)})], subject).finish().subjects
    assert torch.allclose(one.drawn.sum(0), torch.ones(3, 4), atol=1e-5)
    heat, unknown = one.looked_at([(1, 0.5), (2, 0.25), (4, 0.25)])
    assert unknown is None and heat is not None
    assert torch.equal(heat, torch.tensor([[0.0, 0.5, 0.25]]))


class TestBound:
    """At SDXL's full shapes, on made-up activations."""

    SITES = [f"down_blocks.2.attentions.{a}.transformer_blocks.{t}" for a in range(2) for t in range(10)]
    SITES += [f"up_blocks.0.attentions.{a}.transformer_blocks.{t}" for a in range(3) for t in range(10)]
    SITES += [f"mid_block.attentions.0.transformer_blocks.{t}" for t in range(10)]
    FINE = [f"down_blocks.1.attentions.{a}.transformer_blocks.{t}" for a in range(2) for t in range(2)]
    FINE += [f"up_blocks.1.attentions.{a}.transformer_blocks.{t}" for a in range(3) for t in range(2)]

    def held(self, recording: Recording) -> int:
        """Bytes of all tensors that a recording holds."""
        tallies = [tally for kept in recording._kept.values() for tally in (kept.tokens, *kept.maps.values())]
        return sum(4 * (tally.sum.numel() + tally.count.numel()) for tally in tallies)

    @pytest.mark.parametrize(("megabytes", "group", "side"), [(128, 2, 64), (16, 16, 32)], ids=str)
    def test_all_70_layers_1024_tokens_and_30_steps_stay_within_it(
        self, monkeypatch: pytest.MonkeyPatch, megabytes: float, group: int, side: int
    ) -> None:
        def made_up(layer: ObservedLayer, *_: Any) -> list[tuple[slice, Measured]]:
            length = layer.grid[0] * layer.grid[1]
            ones = torch.ones(length)
            return [(slice(0, length), Measured(ones, ones, ones, torch.ones(1, 1).expand(length, 1024)))]

        monkeypatch.setattr(recording_module, "measure_row", made_up)
        monkeypatch.setattr(Tally, "add", lambda *_: None)  # sums are other tests' matter
        monkeypatch.setattr(recording_module, "token_colours", lambda subject: torch.zeros(1024, 0))
        subject = Subject(randn(1024, 8), torch.zeros(1024), "person", "made up")
        recording = Recording(
            Watch(layers="all", megabytes=megabytes), [Recorded("a", "a", "person", [subject], 1024)],
            pictures=1, steps=30,
        )  # fmt: skip
        assert len(self.SITES) + len(self.FINE) == 70
        places = [(0, (0, 0, 128, 128, 128, 128))]
        mask = torch.ones(1, 77, dtype=torch.bool)
        shown = [ObservedSubject("a", mask, mask, lambda: bound())]
        empty = torch.zeros(1, 1, 1)
        for step in range(30):
            for site in (*self.SITES, *self.FINE):
                grid = (64, 64) if site in self.FINE else (32, 32)
                recording.see(ObservedLayer(site, step, grid, places, empty, empty, empty, 10, shown))
                assert recording.bytes <= megabytes * 1e6 * (1 - WORK)
        assert recording.bytes == self.held(recording)
        assert recording.group == group
        (kept,) = recording._kept.values()
        assert kept.tokens.count.shape == (side, side)
        assert {site for site, _ in kept.maps} == {*self.SITES, *self.FINE}

    @pytest.mark.parametrize("kind", [BoundSubject, AnchoredSubject])
    @pytest.mark.parametrize("megabytes", [128, 40])
    def test_what_a_layer_is_computed_from_fits_besides(
        self, megabytes: float, kind: type[BoundSubject]
    ) -> None:
        """Made of activations of SDXL's sizes, by the mechanism; the grid of tokens is another than the
        layer's in each of the cases."""
        mask = torch.zeros(1, 77, dtype=torch.bool)
        mask[0, 5] = True
        subject = Subject(randn(1024, 8), torch.zeros(1024), "person", "made up")
        recorded = [Recorded("a", "a", "person", [subject], 1024)]
        recording = Recording(Watch(layers="all", megabytes=megabytes), recorded, pictures=1, steps=30)
        places = [(0, (0, 0, 128, 128, 128, 128))]
        for site, grid, inner in ((self.FINE[0], (64, 64), 640), (self.SITES[0], (32, 32), 1280)):
            text, own = randn(2, 1, 77, inner, seed=1), randn(2, 1, 1024, inner, seed=2)
            one = kind(key=own[0], value=own[1], mask=mask, attention_scale=2.0)
            shown = [ObservedSubject("a", mask, mask, lambda one=one: one)]
            query = randn(1, grid[0] * grid[1], inner)
            layer = ObservedLayer(site, 0, grid, places, query, *text, inner // 64, shown)
            before = recording.bytes
            with LiveBytes() as live:
                recording.see(layer)
            assert live.peak - (recording.bytes - before) <= megabytes * 1e6 * WORK, site
        (kept,) = recording._kept.values()
        assert kept.tokens.count.shape == {128: (64, 64), 40: (32, 32)}[int(megabytes)]
        assert torch.allclose(kept.tokens.mean().sum(dim=0), torch.ones(kept.tokens.count.shape), atol=1e-4)

    def test_what_does_not_fit_is_refused_with_what_it_takes(self) -> None:
        layer = observed((16, 16), {"alice": bound()})
        with pytest.raises(
            NestedAttentionError, match=r"Observe Subjects: .*more than 0\.0 MB.*allows 0\.001"
        ):
            record([layer], made(), megabytes=0.001)


def test_the_queries_of_an_encoder_look_where_its_attention_goes() -> None:
    torch.manual_seed(0)
    from nested_attention.qformer import QFormer

    qformer = QFormer(vision_dim=6, token_dim=8, num_queries=4, width=8, depth=2, heads=2, head_dim=4)
    features = randn(1, 10, 6)
    maps = qformer.attention_maps(features)
    assert maps.shape == (1, 2, 4, 10)
    assert maps.min() >= 0 and bool((maps.sum(-1) < 1).all())  # the rest goes to the latents
    layer = qformer.layers[0].attention
    q, k, _ = layer.project(qformer.proj_in(features), qformer.latents)
    expected = (q @ k.mT / 2).softmax(-1)[..., :10].mean(1)
    assert torch.allclose(maps[:, 0], expected, atol=1e-6)


def test_looks_leave_out_the_class_token_and_refuse_what_is_no_square() -> None:
    class Made:
        def attention_maps(self, features: Tensor) -> Tensor:
            return features[:, None].mT  # what was given, as if attended

    maps = looks(Made(), torch.arange(1.0, 11).expand(2, 10).T)  # type: ignore[arg-type]
    assert maps.shape == (2, 3, 3) and torch.allclose(maps.sum((1, 2)), torch.ones(2))
    assert torch.allclose(maps[0].flatten(), torch.arange(2.0, 11) / 54)
    with pytest.raises(NestedAttentionError, match="8 features a picture"):
        looks(Made(), torch.ones(8, 2))  # type: ignore[arg-type]


def test_references_stay_out_of_files_and_go_along_with_mixing(tmp_path: Any) -> None:
    known = reference(torch.rand(4, 4, 3), lambda: torch.ones(5, 1, 1))
    one, other = made(references=(known,)), made()
    assert one.mix(other, 0.5).references == (known, None)
    assert other.mix(one, 0.5).references == (None, known)
    assert other.mix(other, 0.5).references == ()
    one.save(tmp_path / "one.safetensors")
    assert Subject.load(tmp_path / "one.safetensors").references == ()
    other.save(tmp_path / "other.safetensors")
    files = [read_tensors(tmp_path / f"{name}.safetensors") for name in ("one", "other")]
    assert files[0].metadata == files[1].metadata
    assert set(files[0].tensors) == set(files[1].tensors) == {"tokens", "token_bias"}
    with pytest.raises(NestedAttentionError, match="2 references for 5 tokens"):
        made(references=(known, known))


class TestInDiffusers:
    @pytest.fixture(scope="class")
    def pipeline(self) -> StableDiffusionXLPipeline:
        return make_pipeline()

    @pytest.fixture(scope="class")
    def encoder(self, pipeline: StableDiffusionXLPipeline) -> SubjectEncoder:
        return make_encoder(pipeline.unet)

    def draw(
        self, pipeline: Any, subjects: list[AppliedSubject], recorder: Any = None, **more: Any
    ) -> Tensor:
        options = {"num_inference_steps": STEPS, "height": 32, "width": 48, "guidance_scale": 5.0, **more}
        with personalize(pipeline, subjects, recorder=recorder):
            return pipeline(
                "a photo of <alice> and <bob:man>", generator=torch.Generator().manual_seed(0),
                output_type="latent", **options,
            ).images  # fmt: skip

    def two(self, encoder: SubjectEncoder, **alice: Any) -> list[AppliedSubject]:
        strong = {"attention_scale": 3.0, "alpha": 6.0}
        return [
            AppliedSubject(make_subject(encoder, seed=n), encoder, name=name, **{**strong, **more})
            for n, (name, more) in enumerate((("alice", alice), ("bob", {})))
        ]

    @pytest.mark.parametrize("guidance", [5.0, 1.0])
    @pytest.mark.parametrize("alice", [{}, {"region": torch.tensor([[1.0, 0.0]]), "bounded": True}])
    def test_pictures_are_the_same_and_every_call_is_recorded_anew(
        self, pipeline: Any, encoder: SubjectEncoder, guidance: float, alice: dict[str, Any]
    ) -> None:
        subjects = self.two(encoder, **alice)
        more = {"guidance_scale": guidance, "num_images_per_prompt": 2}
        plain = self.draw(pipeline, subjects, **more)
        recorder = Recorder(Watch(layers="all"))
        assert torch.equal(self.draw(pipeline, subjects, recorder, **more), plain)
        first = recorder.observation()
        assert torch.equal(self.draw(pipeline, subjects, recorder, **more), plain)
        again = recorder.observation()
        assert first is not again and first.spans == ((0, 0), (1, 1), (2, 2))
        assert [(one.picture, one.title) for one in again.subjects] == [
            (0, "alice"), (0, "bob"), (1, "alice"), (1, "bob"),
        ]  # fmt: skip
        for one, other in zip(first.subjects, again.subjects, strict=True):
            assert set(one.maps) == {site.name for site in encoder.config.sites}
            assert all(torch.equal(x, other.maps[site]) for site, x in one.maps.items())
        assert not pipeline.unet._forward_pre_hooks

    def test_a_subject_that_starts_later_has_maps_of_nothing_until_then(
        self, pipeline: Any, encoder: SubjectEncoder
    ) -> None:
        recorder = Recorder(Watch(layers="all"))
        self.draw(pipeline, self.two(encoder, start=0.7), recorder)
        seen, picture = recorder.observation(), np.full((8, 12, 3), 200, np.uint8)
        late, first = seen.subjects[0], Selection(steps=(0, 0))
        assert not late.mean(WORD, first, seen.spans).any() and late.mean(WORD, Selection(), seen.spans).any()
        assert (late.coloured(first, seen.spans) == 0.5).all()
        (shown,) = word_pictures(seen, [picture], first)
        alone = overlay(picture, [(seen.subjects[1].mean(WORD, first, seen.spans)[0], PALETTE[1])])
        assert np.array_equal(shown, alone)
        assert "NaN" not in page(document(seen, [picture], []), "maps")

    def test_what_a_negative_prompt_attends_is_not_in_the_picture(
        self, pipeline: Any, encoder: SubjectEncoder
    ) -> None:
        seen = []
        for applied in (False, True):
            recorder = Recorder(Watch(layers="all"))
            subjects = self.two(encoder, apply_to_negative=applied)
            self.draw(pipeline, subjects, recorder, negative_prompt="<alice> <alice>", num_inference_steps=1)
            seen.append(recorder.observation().subjects[0])
        for site, maps in seen[0].maps.items():
            torch.testing.assert_close(seen[1].maps[site], maps, rtol=1e-4, atol=1e-5)

    def test_an_interrupted_call_leaves_nothing(self, pipeline: Any, encoder: SubjectEncoder) -> None:
        recorder = Recorder(Watch(layers="all"))
        self.draw(pipeline, self.two(encoder), recorder)

        def stop(*_: Any) -> Any:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.draw(pipeline, self.two(encoder), recorder, callback_on_step_end=stop)
        with pytest.raises(NestedAttentionError, match="nothing was observed: no call"):
            recorder.observation()

    def test_only_the_chosen_layers_and_steps_are_seen(self, pipeline: Any, encoder: SubjectEncoder) -> None:
        recorder = Recorder(Watch(start=0.6))
        self.draw(pipeline, self.two(encoder), recorder)
        seen = recorder.observation()
        assert seen.spans == ((2, 2),)
        assert all(site.startswith("up_blocks.") for one in seen.subjects for site in one.maps)
        assert area_mean(seen.subjects[0].weights, (1, 1)).shape == (6, 1, 1)


@pytest.mark.parametrize("wrong", [{"start": 0.5, "end": 0.5}, {"start": -0.1}, {"end": 1.5}])
def test_a_watch_of_no_steps_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(NestedAttentionError, match="expected 0 ≤ start < end ≤ 1"):
        Watch(**wrong)
