"""The readable form of the mechanism and the form that hosts run, against an explicit construction of Eq. 2
to 4, and the properties the hosts build on."""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from explicit import explicit_nested_attention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nested_attention import attention
from nested_attention.attention import (
    BoundSubject,
    check_subjects,
    gate,
    joined,
    nested_value,
    nested_weights,
    onto,
    per_head,
    text_weights,
)
from nested_attention.bench.memory import LiveBytes
from nested_attention.kernels import chunks

TOLERANCE = 1e-5  # of the largest output
TENSORS = ("key", "value", "mask", "word", "token_bias", "region")


class Form(NamedTuple):
    nested: Callable[..., Tensor]
    correction: Callable[..., Tensor]


READABLE = Form(attention.nested_cross_attention, attention.subject_correction)
CHUNKS = Form(chunks.nested, chunks.correction)
FORMS = {"readable": READABLE, "chunks": CHUNKS}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def test_case_covers_what_it_should() -> None:
    """The generator below reaches each option; a test that never sees one would not fail without it."""
    cases = [make_case(seed) for seed in range(60)]
    subjects = [s for _, _, _, _, found in cases for s in found]
    for name, wanted in {
        "attention_scale": {0.5, 1, 2, 4},
        "alpha": {None, 1.0, 2.0},
        "norm": {"inner", "head"},
        "bounded": {True, False},
        "strength": {0.0, 0.3, 1.0},
    }.items():
        assert {getattr(s, name) for s in subjects} == wanted
    assert any(s.token_bias is not None and s.token_bias.isinf().any() for s in subjects)
    assert any(s.region is not None and (s.region == 0).any() for s in subjects)
    assert any(s.word is not None for s in subjects)
    assert any(len(s.mask) > len(s.key) for s in subjects)
    together = [s for s in subjects if s.bounded and s.word is not None and s.strength and s.mask.any()]
    assert len(together) >= 10
    assert any((s.mask.sum(1) > 1).any() and (s.mask.sum(1) == 0).any() for s in subjects)


@each_form
@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31))
def test_equals_the_explicit_construction(form: Form, seed: int) -> None:
    query, key, value, heads, subjects = make_case(seed)
    check_subjects(subjects, *key.shape[:2])
    expected = explicit_nested_attention(query, key, value, subjects, heads=heads)
    plain = explicit_nested_attention(query, key, value, [], heads=heads)
    assert_close(form.nested(query, key, value, subjects, heads=heads), expected)
    assert_close(plain + form.correction(query, key, value, subjects, heads=heads), expected)
    given_plain = form.correction(query, key, value, subjects, heads=heads, plain=plain.float())
    assert_close(plain + given_plain, expected)


@each_form
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31))
def test_equals_the_explicit_construction_to_the_last_digits_in_fp64(form: Form, seed: int) -> None:
    query, key, value, heads, subjects = make_case(seed, dtype=torch.float64)
    out = form.nested(query, key, value, subjects, heads=heads)
    assert out.dtype == torch.float64
    assert_close(out, explicit_nested_attention(query, key, value, subjects, heads=heads), 1e-12)


@each_form
@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31))
def test_gradients_equal_those_of_the_explicit_construction(form: Form, seed: int) -> None:
    query, key, value, heads, subjects = make_case(seed)
    inputs = [query, key, value, *(x for s in subjects for x in (s.key, s.value))]
    for x in inputs:
        x.requires_grad_()
    weights = torch.randn(query.shape, generator=torch.Generator().manual_seed(seed % 1000))
    expected_loss = explicit_nested_attention(query, key, value, subjects, heads=heads) * weights
    expected = torch.autograd.grad(expected_loss.sum(), inputs, allow_unused=True)
    plain = form.nested(query, key, value, [], heads=heads)
    for out in (
        form.nested(query, key, value, subjects, heads=heads),
        plain + form.correction(query, key, value, subjects, heads=heads),
    ):
        found = torch.autograd.grad((out * weights).sum(), inputs, allow_unused=True, retain_graph=True)
        largest = max(float(g.abs().max()) for g in expected if g is not None)
        for a, b in zip(found, expected, strict=True):
            if a is None or b is None:  # a subject of strength 0
                assert a is None or not a.any()
                assert b is None or not b.any()
            else:
                scale = max(float(b.abs().max()), 0.1 * largest)  # what is small comes of larger terms
                assert float((a - b).abs().max()) <= TOLERANCE * scale


@pytest.mark.parametrize("limit", [1, 40, 10**9])
def test_chunks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    query, key, value, heads, subjects = make_case(5)
    monkeypatch.setattr(chunks, "CPU_LOGITS", limit)
    out = CHUNKS.nested(query, key, value, subjects, heads=heads)
    assert_close(out, explicit_nested_attention(query, key, value, subjects, heads=heads))


@each_form
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("seed", range(12))
def test_half_precision(form: Form, dtype: torch.dtype, tolerance: float, seed: int) -> None:
    query, key, value, heads, subjects = make_case(seed)
    query, key, value = (x.to(dtype) for x in (query, key, value))
    out = form.nested(query, key, value, subjects, heads=heads)  # K̆, V̆ stay fp32: they are cast
    assert out.dtype == dtype
    plain = attend(query, key, value, heads)
    corrected = plain + form.correction(query, key, value, subjects, heads=heads)
    assert corrected.dtype == dtype
    rounded = [replace(s, key=s.key.to(dtype), value=s.value.to(dtype)) for s in subjects]
    expected = explicit_nested_attention(query, key, value, rounded, heads=heads)
    assert_close(out, expected, tolerance)
    assert_close(corrected, expected, 2 * tolerance)


@each_form
def test_logits_and_norms_do_not_overflow_in_half_precision(form: Form) -> None:
    query, key, value, heads, _ = make_case(1)
    query, key, value = ((60 * x).half() for x in (query, key, value))  # |V|² and Q Kᵀ exceed 65504
    subject = one_subject(key, value=300.0)
    out = form.nested(query, key, value, [subject], heads=heads)
    assert out.isfinite().all()


@each_form
def test_autocast_does_not_lower_the_precision_of_the_logits(form: Form) -> None:
    query, key, value, heads, subjects = make_case(3)
    expected = form.nested(query, key, value, subjects, heads=heads)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain_rows = form.nested(query, key, value, subjects, heads=heads)
    marked = torch.stack([s.mask.any(1) for s in subjects if s.strength]).any(0)
    assert torch.equal(plain_rows[marked], expected[marked])


class TestWhatIsLeftAlone:
    @each_form
    def test_no_subject_is_plain_attention_bit_for_bit(self, form: Form) -> None:
        query, key, value, heads, _ = make_case(0)
        plain = attend(query, key, value, heads)
        assert torch.equal(form.nested(query, key, value, [], heads=heads), plain)
        assert not form.correction(query, key, value, [], heads=heads).any()

    @each_form
    @pytest.mark.parametrize("off", [{"strength": 0.0}, {"mask": torch.zeros(3, 7, dtype=torch.bool)}])
    def test_strength_zero_and_no_mark_skip_the_subject_altogether(
        self, form: Form, off: dict[str, object]
    ) -> None:
        query, key, value, heads = make_text(3, 9, 7, 2, 8)
        subject = one_subject(key, attention_scale=4.0, region=torch.zeros(1, 9), bounded=True)
        subject = replace(subject, key=torch.full_like(subject.key, torch.nan), **off)
        plain = attend(query, key, value, heads)
        assert torch.equal(form.nested(query, key, value, [subject], heads=heads), plain)
        assert not form.correction(query, key, value, [subject], heads=heads).any()

    @each_form
    @pytest.mark.parametrize("marked", [[1], [0, 2], [0, 1, 3], []])
    def test_rows_without_a_mark_are_plain_bit_for_bit(self, form: Form, marked: list[int]) -> None:
        query, key, value, heads = make_text(4, 9, 7, 2, 8)
        subject = one_subject(key, attention_scale=2.0, rows=marked)
        out = form.nested(query, key, value, [subject], heads=heads)
        plain = attend(query, key, value, heads)
        others = [row for row in range(4) if row not in marked]
        assert torch.equal(out[others], plain[others])
        assert all(not torch.allclose(out[row], plain[row]) for row in marked)

    @pytest.mark.parametrize("marked", [[1], [0, 2], [0, 1, 2, 3]])
    def test_nested_attention_runs_on_marked_rows_only(
        self, monkeypatch: pytest.MonkeyPatch, marked: list[int]
    ) -> None:
        query, key, value, heads = make_text(4, 9, 7, 2, 8)
        calls: list[tuple[int, int]] = []

        def spy(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
            calls.append((len(q), k.shape[2]))
            return scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)

        monkeypatch.setattr(attention, "scaled_dot_product_attention", spy)
        subject = one_subject(key, rows=marked)
        CHUNKS.correction(query, key, value, [subject], heads=heads)
        assert calls == [(len(marked), subject.key.shape[1])]
        other = one_subject(key, rows=marked[:1], token=2)
        calls.clear()
        CHUNKS.correction(query, key, value, [subject, other], heads=heads)
        assert sum(rows for rows, _ in calls) == len(marked) + 1

    @each_form
    def test_a_row_sees_only_its_own_subject(self, form: Form) -> None:
        query, key, value, heads = make_text(3, 9, 7, 2, 8)
        subject = one_subject(key, rows=[1])
        lost = subject.key.expand(3, -1, -1).clone()
        lost[[0, 2]] = torch.nan  # would spread if it were read
        subject = replace(subject, key=lost)
        assert form.nested(query, key, value, [subject], heads=heads).isfinite().all()


class TestRegionAndBounds:
    @each_form
    def test_region_zero_is_plain_and_region_one_is_no_region(self, form: Form) -> None:
        query, key, value, heads = make_text(1, 9, 7, 2, 8)
        subject = one_subject(key, attention_scale=2.0)
        half = torch.tensor([[0.0] * 4 + [1.0] * 5])
        out = form.nested(query, key, value, [replace(subject, region=half)], heads=heads)
        everywhere = form.nested(query, key, value, [subject], heads=heads)
        assert_close(out[:, :4], attend(query, key, value, heads)[:, :4].double(), 1e-6)
        assert_close(out[:, 4:], everywhere[:, 4:].double(), 1e-6)

    @each_form
    def test_bounded_without_a_region_does_nothing(self, form: Form) -> None:
        query, key, value, heads = make_text(1, 9, 7, 2, 8)
        subject = one_subject(key, strength=0.5)
        bounded = replace(subject, bounded=True)
        expected = form.nested(query, key, value, [subject], heads=heads)
        assert torch.equal(form.nested(query, key, value, [bounded], heads=heads), expected)
        correction = form.correction(query, key, value, [bounded], heads=heads)
        assert torch.equal(correction, form.correction(query, key, value, [subject], heads=heads))

    @each_form
    def test_bounded_word_is_not_attended_outside_its_region(self, form: Form) -> None:
        query, key, value, heads = make_text(1, 9, 7, 2, 8)
        region = torch.tensor([[0.0] * 4 + [1.0] * 5])
        word = torch.zeros(1, 7, dtype=torch.bool)
        word[0, 2:4] = True
        subject = one_subject(key, region=region, bounded=True, word=word)
        changed = value.clone()
        changed[:, 2:4] += 100
        out, other = (form.nested(query, key, v, [subject], heads=heads) for v in (value, changed))
        assert torch.equal(out[:, :4], other[:, :4])
        assert not torch.allclose(out[:, 4:], other[:, 4:])

    @each_form
    def test_overlapping_words_both_count(self, form: Form) -> None:
        query, key, value, heads = make_text(2, 9, 7, 2, 8)
        word = torch.zeros(2, 7, dtype=torch.bool)
        word[:, 2:5] = True
        generator = torch.Generator().manual_seed(3)
        regions = (torch.rand(2, 9, generator=generator), torch.rand(1, 9, generator=generator))
        subjects = [
            one_subject(key, token=token, region=region, bounded=True, word=word)
            for token, region in zip((3, 4), regions, strict=True)
        ]
        out = form.nested(query, key, value, subjects, heads=heads)
        assert_close(out, explicit_nested_attention(query, key, value, subjects, heads=heads))

    @each_form
    def test_a_prompt_that_is_nothing_but_the_word_stays_finite_outside_the_region(self, form: Form) -> None:
        query, key, value, heads = make_text(1, 9, 7, 2, 8)
        word = torch.ones(1, 7, dtype=torch.bool)
        key.requires_grad_()
        subject = one_subject(key, region=torch.zeros(1, 9), bounded=True, word=word, strength=0.5)
        out = form.nested(query, key, value, [subject], heads=heads)
        out.sum().backward()
        assert out.isfinite().all()
        assert key.grad is not None
        assert key.grad.isfinite().all()


class TestSubjects:
    @each_form
    def test_attention_scale_raises_and_lowers_the_attention_to_the_subject(self, form: Form) -> None:
        query, key, value, heads = make_text(1, 9, 7, 2, 8)
        key[0, 3] = query[0].mean(0)  # so that its logits are mostly above 0
        value[:] = 0
        subject = one_subject(key, value=1.0, alpha=None)
        subject = replace(subject, value=torch.ones_like(subject.value))  # the output is P[s*]
        low, one, high = (
            form.nested(query, key, value, [replace(subject, attention_scale=s)], heads=heads)
            for s in (0.5, 1.0, 2.0)
        )
        assert (low <= one + 1e-6).all()
        assert (one <= high + 1e-6).all()
        assert low.mean() < one.mean() < high.mean()

    @each_form
    @pytest.mark.parametrize("norm", ["inner", "head"])
    def test_alpha_sets_the_length_of_the_nested_value(self, form: Form, norm: str) -> None:
        query, key, value, heads = make_text(1, 9, 7, 2, 8)
        key[0, 3] = 1e4 * torch.sign(query[0, 0])  # query 0 attends to s* alone
        subject = one_subject(key, alpha=2.0, norm=norm)
        out = form.nested(query, key, value, [subject], heads=heads)[0, 0]
        split = (lambda x: x.view(heads, -1)) if norm == "head" else (lambda x: x.view(1, -1))
        assert torch.allclose(split(out).norm(dim=1), 2 * split(value[0, 3]).norm(dim=1), rtol=1e-5)

    @each_form
    def test_a_zero_nested_value_divides_by_no_zero(self, form: Form) -> None:
        query, key, value, heads = make_text(1, 9, 7, 2, 8)
        subject = one_subject(key)
        nothing = torch.zeros_like(subject.value).requires_grad_()
        out = form.nested(query, key, value, [replace(subject, value=nothing)], heads=heads)
        out.sum().backward()
        assert out.isfinite().all()
        assert nothing.grad is not None
        assert nothing.grad.isfinite().all()

    @each_form
    def test_a_removed_token_is_as_if_it_were_not_there(self, form: Form) -> None:
        query, key, value, heads = make_text(2, 9, 7, 2, 8)
        subject = one_subject(key)
        size = subject.key.shape[1]
        bias = torch.zeros(size)
        bias[2] = -torch.inf
        keep = [n for n in range(size) if n != 2]
        shorter = replace(subject, key=subject.key[:, keep], value=subject.value[:, keep])
        out = form.nested(query, key, value, [replace(subject, token_bias=bias)], heads=heads)
        assert_close(out, form.nested(query, key, value, [shorter], heads=heads).double(), 1e-6)

    @each_form
    def test_equal_weights_change_nothing(self, form: Form) -> None:
        query, key, value, heads = make_text(2, 9, 7, 2, 8)
        subject = one_subject(key)
        biased = replace(subject, token_bias=torch.full((subject.key.shape[1],), -0.7))
        out = form.nested(query, key, value, [biased], heads=heads)
        assert_close(out, form.nested(query, key, value, [subject], heads=heads).double(), 1e-6)


class TestCost:
    @each_form
    def test_memory_stays_below_a_tenth_of_the_mixed_values(self, form: Form) -> None:
        length, tokens, inner, heads = 4096, 77, 640, 10
        query, key, value, _ = make_text(1, length, tokens, heads, inner // heads)
        mixed = length * tokens * inner * query.element_size()  # what Eq. 3 takes if it is built in full
        region = torch.rand(1, length, generator=torch.Generator().manual_seed(0))
        for options in ({}, {"attention_scale": 2.0, "region": region, "bounded": True}):
            subject = one_subject(key, size=256, **options)
            for function in form:
                with LiveBytes() as live, torch.no_grad():
                    function(query, key, value, [subject], heads=heads)
                assert live.peak > query.nbytes  # it did see the output
                assert live.peak < mixed / 10, f"{live.peak / 2**20:.0f} MiB, {options}"

    @each_form
    def test_the_correction_alone_does_not_compute_the_text_attention(self, form: Form) -> None:
        query, key, value, heads = make_text(1, 64, 7, 2, 8)
        shapes: list[tuple[int, ...]] = []
        with LiveBytes(lambda out: shapes.append(tuple(out.shape))), torch.no_grad():
            form.correction(query, key, value, [one_subject(key)], heads=heads)
        big = [shape for shape in shapes if math.prod(shape) > query.numel()]
        assert not big  # nothing of (L, T, d), and (H, L, T) is smaller than (L, H·d) here

    @each_form
    def test_nothing_is_read_back_from_the_device(self, form: Form) -> None:
        """On the meta device there is no data: whatever looked at it would raise."""
        query, key, value, heads = make_text(3, 9, 7, 2, 8)
        subjects = [
            one_subject(key, rows=[0, 2], attention_scale=2.0),
            one_subject(key, token=1, region=torch.rand(1, 9), bounded=True, token_bias=torch.zeros(5)),
        ]
        away = [
            replace(
                s,
                **{
                    n: x.to("meta")
                    for n in TENSORS
                    if (x := getattr(s, n)) is not None and n not in ("mask", "word")
                },
            )
            for s in subjects
        ]
        query, key, value = (x.to("meta") for x in (query, key, value))
        assert form.nested(query, key, value, away, heads=heads).shape == query.shape
        assert form.correction(query, key, value, away, heads=heads).shape == query.shape


class TestPieces:
    """What inspection and measurements look at is what the mechanism computes with."""

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 2**31))
    def test_the_weights_of_the_nested_attention_give_its_value(self, seed: int) -> None:
        query, _, _, heads, subjects = make_case(seed)
        for subject in subjects:
            weights = nested_weights(query, subject, heads=heads)
            assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]).double(), 1e-6)
            value = per_head(subject.value, heads)
            assert_close(weights @ value, nested_value(query, subject, heads=heads).double())

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 2**31))
    def test_the_weights_of_the_text_give_the_attention(self, seed: int) -> None:
        query, key, value, heads, subjects = make_case(seed)
        plain = joined(text_weights(query, key, heads=heads) @ per_head(value, heads))
        assert_close(plain, explicit_nested_attention(query, key, value, [], heads=heads))
        bare = [replace(s, value=torch.zeros_like(s.value), alpha=None) for s in subjects if s.strength]
        weights = text_weights(query, key, bare, heads=heads)
        for subject in bare:  # with v*_q = 0, what is left of V[s*] is (1 − g) of it
            weights = weights * (1 - gate(subject, weights, subject.bounded))
        expected = explicit_nested_attention(query, key, value, bare, heads=heads)
        assert_close(joined(weights @ per_head(value, heads)), expected)


class TestRefusals:
    def test_strength_outside_its_range(self) -> None:
        for strength in (-0.1, 1.1, math.nan):
            with pytest.raises(ValueError, match=r"strength must lie in \[0, 1\]"):
                one_subject(torch.zeros(1, 7, 16), strength=strength)

    def test_two_subjects_on_one_token(self) -> None:
        key = torch.zeros(2, 7, 16)
        subjects = [one_subject(key, token=3), one_subject(key, token=3, rows=[1])]
        with pytest.raises(ValueError, match=r"Subject 1: the \(row, token\) \[\[1, 3\]\] carry another"):
            check_subjects(subjects, 2, 7)
        check_subjects([subjects[0], one_subject(key, token=4)], 2, 7)

    def test_masks_of_another_shape(self) -> None:
        key = torch.zeros(2, 7, 16)
        with pytest.raises(ValueError, match=r"\(2, 8\), found \(2, 7\)"):
            check_subjects([one_subject(key)], 2, 8)
        with pytest.raises(ValueError, match=r"found \(2, 7\) and \(1, 7\)"):
            check_subjects([one_subject(key, word=torch.zeros(1, 7, dtype=torch.bool))], 2, 7)

    @pytest.mark.parametrize("entry", [-torch.inf, torch.inf, torch.nan])
    def test_bias_row_without_a_finite_entry(self, entry: float) -> None:
        key = torch.zeros(2, 7, 16)
        bias = torch.zeros(2, 5)
        bias[1] = entry
        with pytest.raises(ValueError, match="Subject 0: a row of token_bias"):
            check_subjects([one_subject(key, token_bias=bias)], 2, 7)
        check_subjects([one_subject(key, token_bias=torch.tensor([0, -torch.inf, 0, 0, 1.0]))], 2, 7)


def test_the_readable_form_needs_torch_and_einops_only() -> None:
    tree = ast.parse(Path(attention.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not any(node.level for node in imports if isinstance(node, ast.ImportFrom))
    names = {n.name for node in imports if isinstance(node, ast.Import) for n in node.names}
    names |= {node.module or "" for node in imports if isinstance(node, ast.ImportFrom)}
    outside = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    assert outside == {"torch", "einops"}


def make_text(
    batch: int, length: int, tokens: int, heads: int, size: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(seed)
    inner = heads * size
    query, key, value = (torch.randn(batch, n, inner, generator=generator) for n in (length, tokens, tokens))
    return query, key, value, heads


def one_subject(
    key: Tensor,
    *,
    token: int = 3,
    rows: list[int] | None = None,
    size: int = 5,
    value: float = 1.0,
    **options: object,
) -> BoundSubject:
    """A subject at one token of the given rows (None: all) of a text with these keys."""
    generator = torch.Generator().manual_seed(token)
    mask = torch.zeros(key.shape[:2], dtype=torch.bool)
    mask[slice(None) if rows is None else rows, token] = True
    nested_key, nested_value = (torch.randn(1, size, key.shape[2], generator=generator) for _ in range(2))
    return BoundSubject(key=nested_key, value=value * nested_value, mask=mask, **options)  # type: ignore[arg-type]


def make_case(
    seed: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, int, list[BoundSubject]]:
    """Random shapes, and one or two subjects with random options on different tokens of random rows."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*choices):  # noqa: ANN002, ANN202
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    batch, heads, size = pick(1, 2, 3, 5), pick(1, 2, 3), pick(4, 8)
    length, tokens, inner = pick(1, 7, 12), pick(6, 9), heads * size
    query, key, value = (
        pick(1.0, 3.0) * randn(batch, length, inner),
        randn(batch, tokens, inner),
        randn(batch, tokens, inner),
    )
    free = torch.ones(batch, tokens, dtype=torch.bool)
    free[:, :2] = False  # never marked, so that some token is always outside every word
    subjects = []
    for _ in range(pick(1, 2)):
        nested = pick(1, 4, 6)
        mask = (torch.rand(batch, tokens, generator=generator) < 0.35) & free
        mask[torch.rand(batch, generator=generator) < 0.3] = False
        free &= ~mask
        bias = pick(None, randn(nested), randn(1, nested), randn(batch, nested))
        if bias is not None and nested > 1 and pick(True, False):
            bias[..., 1] = -torch.inf
        region = pick(
            None, torch.rand(1, length, generator=generator), torch.rand(batch, length, generator=generator)
        )
        if region is not None and pick(True, False):
            region = torch.where(region < 0.4, 0.0, region)
        word = mask.clone()
        word[:, 2] = True  # more tokens than the mask; two words may share it
        rows = pick(1, batch)
        subjects.append(
            BoundSubject(
                key=2 * randn(rows, nested, inner),
                value=randn(rows, nested, inner),
                mask=mask,
                word=pick(None, word, word),
                alpha=pick(None, 1.0, 2.0),
                attention_scale=pick(0.5, 1, 2, 4),
                strength=pick(0.0, 0.3, 0.3, 1.0, 1.0, 1.0),
                token_bias=bias,
                region=region,
                bounded=region is not None and pick(True, True, False),
                norm=pick("inner", "head"),
            )
        )
    return query, key, value, heads, subjects


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Plain attention as a host computes it."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.isfinite().all()
    assert float((found.double() - expected.double()).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize(("kind", "waits"), [("cuda", False), ("mps", True), ("cpu", True)])
def test_only_cuda_is_sent_values_without_a_wait(kind: str, waits: bool) -> None:
    """Elsewhere memory may be given back before a copy has read it: values would be silently wrong."""
    asked: list[bool] = []

    class Sent:
        def to(self, device: torch.device, *, non_blocking: bool) -> None:
            asked.append(non_blocking)

    onto(Sent(), torch.device(kind))  # type: ignore[arg-type]
    assert asked == [not waits]
