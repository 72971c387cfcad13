"""Anchored attention: against a slow construction, against diffusers' IP-Adapter, and what of it is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from synthetic_checkpoints import Sizes, encoder_tensors, write
from torch import Tensor, nn

from nested_attention import kernels
from nested_attention.anchored import (
    QUANTILE,
    AnchoredSubject,
    anchor,
    anchored_addition,
    anchored_attention,
    place_of,
    shared,
)
from nested_attention.attention import BoundSubject, nested_cross_attention, plain_attention
from nested_attention.checkpoint import load_subject_encoder
from nested_attention.hosts.diffusers import SubjectBinding, SubjectSlot
from nested_attention.kernels import chunks
from nested_attention.kernels.rows import read_rows
from nested_attention.settings import SubjectSettings
from nested_attention.sites import diffusers_sites, sdxl_sites

HEADS, SIZE, QUERIES, TOKENS, OWN = 3, 8, 40, 11, 6
TOLERANCE = 1e-5


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def text() -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of three rows."""
    inner = HEADS * SIZE
    return randn(3, QUERIES, inner, seed=0), randn(3, TOKENS, inner, seed=1), randn(3, TOKENS, inner, seed=2)


def subject(seed: int = 3, *tokens: tuple[int, int], **fields: Any) -> AnchoredSubject:
    mask = torch.zeros(3, TOKENS, dtype=torch.bool)
    for row, token in tokens or ((1, 4), (2, 2), (2, 3)):
        mask[row, token] = True
    key, value = randn(1, OWN, HEADS * SIZE, seed=seed), 3 * randn(1, OWN, HEADS * SIZE, seed=seed + 50)
    return AnchoredSubject(**{"key": key, "value": value, "mask": mask, **fields})


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(x / x.sum(axis=-1, keepdims=True))


def explicit(q: Tensor, k: Tensor, v: Tensor, subjects: Sequence[AnchoredSubject]) -> np.ndarray:
    """The three lines of the docstring, a row and a head at a time, in fp64, without the library."""
    out = np.zeros(q.shape)
    for row in range(len(q)):
        logits, heads = [], [slice(h * SIZE, (h + 1) * SIZE) for h in range(HEADS)]
        for head in heads:
            queries, keys, values = (x[row, :, head].double().numpy() for x in (q, k, v))
            logits.append(queries @ keys.T / np.sqrt(SIZE))
            out[row, :, head] = softmax(logits[-1]) @ values
        places = []
        for one in subjects:
            word = one.mask[row].numpy()
            region = np.ones(QUERIES) if one.region is None else one.region[0].double().numpy()
            places.append(region * word.any())
            if one.everywhere or not word.any():
                continue
            scale = 1 + (one.attention_scale - 1) * one.strength * region[:, None]
            raised = [np.where(word & (x > 0), x * scale, x) for x in logits]
            attended = np.mean([softmax(x)[:, word].sum(axis=1) for x in logits], axis=0)
            more = np.mean([softmax(x)[:, word].sum(axis=1) for x in raised], axis=0)
            high, low = np.quantile(attended, (one.quantile, 0.05))
            places[-1] *= np.clip(more / (one.level * high), 0, 1) ** one.exponent
            places[-1] *= np.clip((0.8 - low / high) / 0.2, 0, 1)
        total = sum(p for p, one in zip(places, subjects, strict=True) if not one.everywhere)
        for place, one in zip(places, subjects, strict=True):
            own = place if one.everywhere else place * place / np.maximum(total, 1e-6)
            for head in heads:
                keys, values = (x[0, :, head].double().numpy() for x in (one.key, one.value))
                bias = 0 if one.token_bias is None else one.token_bias.numpy()
                x = q[row, :, head].double().numpy() @ keys.T / np.sqrt(SIZE) + bias
                out[row, :, head] += one.weight * one.strength * own[:, None] * (softmax(x) @ values)
    return out


REGION = torch.linspace(0, 1, QUERIES)[None]
CASES: dict[str, Callable[[], list[AnchoredSubject]]] = {
    "one": lambda: [subject()],
    "λ above 1, within a region": lambda: [subject(attention_scale=3.0, region=REGION, strength=0.6)],
    "softer, of the median on": lambda: [subject(quantile=0.5, level=0.8, exponent=0.5, weight=1.7)],
    "everywhere": lambda: [subject(everywhere=True)],
    "everywhere in a region": lambda: [subject(everywhere=True, region=1 - REGION)],
    "pictures weighed": lambda: [subject(token_bias=torch.linspace(-2, 0, OWN))],
    "two that overlap": lambda: [subject(), subject(4, (1, 7), (0, 0), weight=0.5)],
    "two, one everywhere": lambda: [subject(everywhere=True), subject(4, (1, 7), attention_scale=2.0)],
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_explicit_construction(case: str, text: tuple[Tensor, Tensor, Tensor]) -> None:
    subjects, expected = CASES[case](), explicit(*text, CASES[case]())
    for run in (anchored_attention, kernels.nested):
        found = run(*text, subjects, heads=HEADS)
        assert np.abs(found.numpy() - expected).max() <= TOLERANCE * np.abs(expected).max(), run


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("recorded", [False, True], ids=["inference", "gradients"])
def test_what_hosts_run_is_the_readable_form(
    case: str, recorded: bool, text: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks, in rows that do not lie together, on top of what a host or another pack has there."""
    monkeypatch.setattr(chunks, "CPU_LOGITS", TOKENS * HEADS * 7)
    subjects, addition = CASES[case](), anchored_addition(*text[:2], CASES[case](), heads=HEADS)
    with torch.set_grad_enabled(recorded):
        there = randn(*text[0].shape, seed=9)
        kept = there.clone()
        found = kernels.add_correction(there, *text, subjects, heads=HEADS, plain=False)
        assert torch.equal(there, kept)
        torch.testing.assert_close(found, kept + addition, atol=TOLERANCE, rtol=TOLERANCE)
        change = kernels.correction(*text, subjects, heads=HEADS)
        torch.testing.assert_close(change, addition, atol=TOLERANCE, rtol=TOLERANCE)
        apart = [replace(one, mask=one.mask[[1, 0, 2]]) for one in subjects]  # rows 0 and 2 carry
        moved = tuple(x[[1, 0, 2]] for x in text)
        change = kernels.correction(*moved, apart, heads=HEADS)
        torch.testing.assert_close(change, addition[[1, 0, 2]], atol=TOLERANCE, rtol=TOLERANCE)


def test_gradients_reach_what_is_added_and_where(text: tuple[Tensor, Tensor, Tensor]) -> None:
    inputs = [x.requires_grad_() for x in text]
    one = subject(weight=0.7)
    inputs += [one.key.requires_grad_(), one.value.requires_grad_()]
    weights = randn(*text[0].shape, seed=8)
    both = [
        torch.autograd.grad((run(*text, [one], heads=HEADS) * weights).sum(), inputs)
        for run in (anchored_attention, kernels.nested)
    ]
    for found, expected in zip(*both, strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_beside_nested_subjects_each_is_what_it_is_alone(text: tuple[Tensor, Tensor, Tensor]) -> None:
    added = subject()
    mask = torch.zeros(3, TOKENS, dtype=torch.bool)
    mask[2, 7] = True
    nested = BoundSubject(key=added.key, value=added.value, mask=mask, attention_scale=2.0)
    expected = nested_cross_attention(*text, [nested], heads=HEADS)
    expected = expected + anchored_addition(*text[:2], [added], heads=HEADS)
    for chain in ([nested, added], [added, nested]):
        found = kernels.nested(*text, chain, heads=HEADS)
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_without_weight_strength_or_word_it_is_the_text_s_attention(
    text: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Bit for bit; and a region of zeros adds zero."""
    plain = plain_attention(*text, heads=HEADS)
    for off in ({"weight": 0.0}, {"strength": 0.0}):
        assert torch.equal(anchored_attention(*text, [subject(**off)], heads=HEADS), plain)
        assert torch.equal(kernels.nested(*text, [subject(**off)], heads=HEADS), plain)
        there = plain.clone()
        kernels.add_correction(there, *text, [subject(**off)], heads=HEADS, plain=True)
        assert torch.equal(there, plain)
    out = anchored_attention(*text, [subject()], heads=HEADS)
    assert torch.equal(out[0], plain[0]) and not torch.equal(out[1], plain[1])
    there = plain.clone()
    kernels.add_correction(there, *text, [subject()], heads=HEADS, plain=True)
    assert torch.equal(there[0], plain[0])
    nowhere = subject(region=torch.zeros(1, QUERIES))
    assert torch.equal(anchored_attention(*text, [nowhere], heads=HEADS), plain)


def test_the_place_is_where_the_word_is_attended(text: tuple[Tensor, Tensor, Tensor]) -> None:
    """Queries that attend to it as much as the highest twentieth do belong to it fully; λ makes the place
    larger or smaller."""
    q, k, _ = text
    places = {
        scale: anchor(q, k, subject(attention_scale=scale), heads=HEADS) for scale in (0.5, 1.0, 2.0, 6.0)
    }
    assert all(float(place.min()) >= 0 and float(place.max()) <= 1 for place in places.values())
    one = places[1.0]
    assert not one[0].any()  # has no word
    strict = anchor(q, k, subject(level=1.0), heads=HEADS)
    assert (strict[1:] == 1).sum(dim=1).tolist() == [round((1 - QUANTILE) * QUERIES)] * 2
    assert bool((one >= strict).all()) and not torch.equal(one, strict)
    sums = [float(place.sum()) for place in places.values()]
    assert sums == sorted(sums) and sums[0] < sums[1] < sums[2] < sums[3]


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("level", [1e-9, 0.02, 0.7])
def test_where_the_word_has_no_place_nothing_is_added(noise: float, level: float) -> None:
    """In an early step, in a tile without the subject: attention that is the same all over, but for noise."""
    flat = level * (1 + noise * randn(2, 1024, seed=1))
    assert float(place_of(flat, flat, subject()).max()) <= (0 if level > 1e-6 else 1e-3)
    there = flat.clone()
    there[:, :100] *= 3  # and a tenth of the picture that attends more
    place = place_of(there, there, subject())
    if level > 1e-6:
        assert bool((place[:, :100] > 0.99).all()) and place[:, 100:].max() < 0.4
    else:  # what is next to nothing is no place, whatever it is compared with
        assert place.max() < 1e-3


def test_where_places_overlap_each_adds_by_its_share(text: tuple[Tensor, Tensor, Tensor]) -> None:
    """Two adapters of one picture add, at the same word's place, what one of them does; at another word's,
    each what it would alone where the other is not, and never more than one in all."""
    q, k, _ = text
    one, twin, other = subject(3, (1, 4)), subject(3, (1, 4)), subject(3, (1, 7))
    alone = anchored_addition(q, k, [one], heads=HEADS)
    together = anchored_addition(q, k, [one, twin], heads=HEADS)
    torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=TOLERANCE)
    places = [anchor(q, k, each, heads=HEADS) for each in (one, other)]
    first, second = shared(places, [one, other])
    assert bool((first + second <= 1 + TOLERANCE).all())
    clear = places[1] < 1e-4 * places[0]
    torch.testing.assert_close(first[clear], places[0][clear], atol=1e-3, rtol=1e-3)
    both = (places[0] > 0) & (places[1] > 0)
    assert bool((first[both] < places[0][both]).all()) and bool(both.any())


@pytest.mark.parametrize("case", ["λ above 1, within a region", "two, one everywhere"])
def test_a_compiler_follows_it_in_one_graph(case: str, text: tuple[Tensor, Tensor, Tensor]) -> None:
    subjects = CASES[case]()
    rows = read_rows(subjects, torch.device("cpu"))

    @torch.compile(backend="eager", fullgraph=True)
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels.add_correction(q, q, k, v, subjects, heads=HEADS, plain=False, rows=rows)

    with torch.no_grad():
        expected = text[0] + anchored_addition(*text[:2], subjects, heads=HEADS)
        torch.testing.assert_close(run(*text), expected, atol=TOLERANCE, rtol=TOLERANCE)


class Adapter(nn.Module):
    """IP-Adapter in a layer, by diffusers' processor, with these keys and values."""

    def __init__(self, layer: Any, key: Tensor, value: Tensor, scale: float) -> None:
        super().__init__()
        own = IPAdapterAttnProcessor2_0(
            layer.inner_dim, key.shape[-1], num_tokens=(key.shape[1],), scale=scale
        )
        own.to_k_ip, own.to_v_ip = nn.ModuleList([_Fixed(key)]), nn.ModuleList([_Fixed(value)])
        self.own = own

    def __call__(self, attn: Any, hidden: Tensor, encoder_hidden_states: Any, **kwargs: Any) -> Tensor:
        tokens = hidden.new_zeros(len(hidden), 1, self.own.num_tokens[0], 1)
        out: Tensor = self.own(attn, hidden, (encoder_hidden_states, [tokens]), **kwargs)
        return out


class _Fixed(nn.Module):
    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = out

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out.expand(len(tokens), -1, -1)


@pytest.fixture(scope="module")
def unet() -> Iterator[Any]:
    import tiny_sdxl

    yield tiny_sdxl.make_unet().requires_grad_(False)


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.6, 1.5])
def test_everywhere_is_ip_adapter_in_diffusers(unet: Any, weight: float) -> None:
    projections = {
        site.name: (randn(1, OWN, site.inner_dim, seed=n), 3 * randn(1, OWN, site.inner_dim, seed=n + 99))
        for n, site in enumerate(diffusers_sites(unet))
    }
    given = {
        "sample": randn(2, 4, 16, 16, seed=1),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": randn(2, TOKENS, unet.config.cross_attention_dim, seed=2),
        "added_cond_kwargs": {"text_embeds": randn(2, 32, seed=3), "time_ids": torch.ones(2, 6)},
    }
    before = dict(unet.attn_processors)
    plain = unet(**given).sample
    slot = SubjectSlot.install(unet)
    mask = torch.zeros(2, TOKENS, dtype=torch.bool)
    mask[:, 3] = True
    settings = SubjectSettings(alpha=None, injection="everywhere", weight=weight)
    with slot.bind(SubjectBinding(projections=projections, mask=mask, settings=settings)):
        ours = unet(**given).sample
    slot.remove()
    for name, pair in projections.items():
        layer = unet.get_submodule(name)
        layer.set_processor(Adapter(layer, *pair, weight))
    theirs = unet(**given).sample
    unet.set_attn_processor(before)
    assert float((ours - theirs).abs().max()) <= TOLERANCE * float(theirs.abs().max())
    assert float((theirs - plain).abs().max()) > 0.05 * float(theirs.abs().max())


PLUS = Sizes(vision_dim=1280, token_dim=2048, queries=16, width=1280, depth=4, inner=1280)


@pytest.mark.slow
@torch.no_grad()
def test_the_published_layout_at_full_size_is_ip_adapter_at_every_site(tmp_path: Path) -> None:
    """IP-Adapter Plus for SDXL, of the published sizes with weights made up: what the file's own tensors say,
    layer by layer, is what a layer of ours computes."""
    tensors = encoder_tensors("published", sizes=PLUS, sites=sdxl_sites(), dtype=torch.float16)
    path = write(tmp_path / "ip-adapter.safetensors", tensors)
    encoder = load_subject_encoder(path, dtype=torch.float32)
    path.unlink()
    config = encoder.config
    assert (config.injection, config.features) == ("decoupled", "penultimate_hidden_states")
    settings = SubjectSettings(injection="everywhere").trained_as(config)
    tokens = randn(16, 2048, seed=1)
    mask = torch.zeros(1, 77, dtype=torch.bool)
    mask[0, 5] = True
    for number, (name, (key, value)) in enumerate(encoder.project_each(tokens)):
        site = config.sites[number]
        assert site.name == name
        q, k, v = (randn(1, n, site.inner_dim, seed=10 + n) for n in (12, 77, 77))
        found = kernels.nested(q, k, v, [settings.bind(key, value, mask)], heads=site.heads)
        own = [tensors[f"ip_adapter.{2 * number + 1}.to_{kv}_ip.weight"].float() for kv in "kv"]
        expected = torch.zeros_like(q)
        for keys, values in ((k[0], v[0]), [tokens @ weight.T for weight in own]):
            for head in range(0, site.inner_dim, 64):
                at = slice(head, head + 64)
                share = (q[0, :, at] @ keys[:, at].T / 8).softmax(dim=-1)
                expected[0, :, at] += share @ values[:, at]
        assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max()), name
    assert number == 69
