"""What may be left out of the nested attention, and how far the output is off then."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention import make_case, make_text, one_subject

from nested_attention import skipping
from nested_attention.attention import subject_correction
from nested_attention.errors import NestedAttentionError
from nested_attention.pruning import prune_subject, prune_tokens, token_usage
from nested_attention.reusing import ReusedChanges
from nested_attention.skipping import change_bound, skipping_correction
from nested_attention.subject import Subject


class TestSkipping:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 2**31))
    def test_no_query_changes_more_than_its_bound(self, seed: int) -> None:
        query, key, value, heads, subjects = make_case(seed)
        subjects = [replace(s, attention_scale=1.0, bounded=False) for s in subjects]
        change = subject_correction(query, key, value, subjects, heads=heads).norm(dim=-1)
        bound = change_bound(query, key, value, subjects, heads=heads)
        assert (change <= bound * (1 + 1e-4) + 1e-6).all()

    def test_the_bound_is_reached_by_a_query_that_attends_to_the_word_alone(self) -> None:
        query, key, value, heads = make_text(1, 9, 7, 2, 8)
        key[0, 3] = 1e4 * torch.sign(query[0, 0])
        subject = one_subject(key, alpha=2.0)
        subject = replace(subject, value=-value[:, 3:4].expand_as(subject.value))  # opposite to V[s*]
        change = subject_correction(query, key, value, [subject], heads=heads).norm(dim=-1)[0, 0]
        bound = change_bound(query, key, value, [subject], heads=heads)[0, 0]
        assert torch.isclose(change, bound, rtol=1e-4)

    @pytest.mark.parametrize("tolerance", [1e-9, 0.1, 0.5, 1e9])
    def test_the_output_is_off_by_no_more_than_the_tolerance(self, tolerance: float) -> None:
        query, key, value, heads = make_text(3, 60, 7, 2, 8)
        subjects = [
            one_subject(key, rows=[0, 2], region=torch.rand(3, 60)),
            one_subject(key, token=1, alpha=None),
        ]
        exact = subject_correction(query, key, value, subjects, heads=heads)
        found = skipping_correction(query, key, value, subjects, heads=heads, tolerance=tolerance)
        off = (found - exact).norm(dim=-1)
        assert (off <= tolerance * value.norm(dim=-1).mean(dim=1, keepdim=True) + 1e-5).all()
        if tolerance == 1e9:
            assert not found.any()
        if tolerance == 1e-9:
            assert torch.equal(found, exact)

    def test_the_queries_skipped_are_not_computed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        query, key, value, heads = make_text(1, 60, 7, 2, 8)
        subject = one_subject(key)
        bound = change_bound(query, key, value, [subject], heads=heads)[0]
        middle = float(bound.median() / value.norm(dim=-1).mean())
        sizes: list[int] = []
        original = skipping.subject_correction

        def spy(query: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            sizes.append(query.shape[1])
            return original(query, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(skipping, "subject_correction", spy)
        skipping_correction(query, key, value, [subject], heads=heads, tolerance=middle)
        assert sizes == [int((bound > bound.median()).sum())]
        assert 20 <= sizes[0] <= 30

    @pytest.mark.parametrize(
        "other", [{"attention_scale": 2.0}, {"bounded": True, "region": torch.ones(1, 9)}]
    )
    def test_what_changes_the_softmax_is_refused(self, other: dict[str, object]) -> None:
        query, key, value, heads = make_text(1, 9, 7, 2, 8)
        with pytest.raises(NestedAttentionError, match="skipping queries: a subject has attention_scale"):
            change_bound(query, key, value, [one_subject(key, **other)], heads=heads)  # type: ignore[arg-type]


class TestPruning:
    def test_usage_is_the_largest_share(self) -> None:
        query, key, _, heads = make_text(2, 9, 7, 2, 8)
        q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key[:1]))
        bias = torch.randn(7)
        probs = (q @ k.mT / 8**0.5 + bias).softmax(-1)  # (2, H, 9, 7)
        usage = token_usage(query, key[:1], heads=heads, token_bias=bias)
        assert torch.allclose(usage, probs.amax(dim=(1, 2)), atol=1e-6)

    def test_the_most_used_tokens_stay_in_their_order(self) -> None:
        tokens, bias = torch.arange(10.0).view(5, 2), torch.arange(5.0) - 4
        kept, kept_bias = prune_tokens(tokens, bias, torch.tensor([0.1, 0.9, 0.2, 0.8, 0.7]), 3)
        assert kept.tolist() == tokens[[1, 3, 4]].tolist()
        assert kept_bias.tolist() == [-3, -1, 0]

    def test_equal_tokens_merge_without_any_change(self) -> None:
        query, key, value, heads = make_text(1, 9, 7, 2, 8)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randn(4, 16, generator=generator).repeat(2, 1)
        bias = torch.randn(8, generator=generator)
        bias[6] = -torch.inf
        usage = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])
        kept, kept_bias = prune_tokens(tokens, bias, usage, 4, merge=True)

        def correction(tokens: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            subject = one_subject(key, token_bias=bias)
            subject = replace(subject, key=tokens[None], value=tokens[None].sin())
            return subject_correction(query, key, value, [subject], heads=heads)

        assert torch.allclose(correction(kept, kept_bias), correction(tokens, bias), atol=1e-5)
        dropped = prune_tokens(tokens, bias, usage, 4)
        assert not torch.allclose(correction(*dropped), correction(tokens, bias), atol=1e-3)

    def test_a_subject_is_pruned_and_wrong_requests_are_refused(self) -> None:
        subject = Subject(torch.randn(6, 4), torch.zeros(6), "person", "f")
        usage = torch.tensor([0.0, 1, 0, 1, 0, 1])
        pruned = prune_subject(subject, usage, 3)
        assert torch.equal(pruned.tokens, subject.tokens[[1, 3, 5]])
        assert (pruned.word, pruned.fingerprint, pruned.images) == ("person", "f", 1)
        assert torch.equal(prune_subject(subject, usage, 6, merge=True).tokens, subject.tokens)
        with pytest.raises(NestedAttentionError, match=r"usage has shape \(5,\); expected \(6,\)"):
            prune_subject(subject, usage[:5], 3)
        for keep in (0, 7):
            with pytest.raises(NestedAttentionError, match=f"{keep} tokens are to be kept of 6"):
                prune_subject(subject, usage, keep)


class TestReusing:
    @staticmethod
    def steps(reused: ReusedChanges, timesteps: list[float], shape: tuple[int, ...] = (1, 4, 8)) -> list[int]:
        """Which forward passes compute, by their number; the others get what the last of these left."""
        computed: list[int] = []
        for number, timestep in enumerate(timesteps):
            reused.begin(timestep)
            for site in ("one", "two"):

                def compute(site: str = site, number: int = number) -> torch.Tensor:
                    computed.append(number)
                    return torch.full(shape, float(number))

                found = reused.change(site, torch.zeros(shape), compute)
                assert float(found.flatten()[0]) == computed[-1]
        assert computed[0::2] == computed[1::2]  # both sites alike
        return computed[0::2]

    @pytest.mark.parametrize(
        ("every", "computed"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (3, [0, 3]), (9, [0])]
    )
    def test_it_is_computed_in_every_so_many_steps(self, every: int, computed: list[int]) -> None:
        assert self.steps(ReusedChanges(every), [999, 800, 600, 400, 200, 0]) == computed

    def test_another_sampling_begins_anew(self) -> None:
        assert self.steps(ReusedChanges(2), [999, 800, 600, 999, 800, 600]) == [0, 2, 3, 5]

    def test_a_sampler_that_asks_twice_at_a_timestep_gets_two_answers(self) -> None:
        assert self.steps(ReusedChanges(2), [999, 999, 800, 800]) == [0, 1, 3]

    def test_other_subjects_and_other_sizes_get_their_own(self) -> None:
        reused, calls = ReusedChanges(4), []

        def ask(*shape: int) -> None:
            reused.change("site", torch.zeros(shape), lambda: calls.append(shape) or torch.zeros(shape))

        reused.begin(999)
        ask(1, 4, 8)
        reused.begin(torch.tensor([800]))
        ask(1, 4, 8)
        ask(2, 4, 8)
        reused.clear()
        ask(2, 4, 8)
        assert calls == [(1, 4, 8), (2, 4, 8), (2, 4, 8)]

    def test_every_step_is_the_most(self) -> None:
        with pytest.raises(NestedAttentionError, match="in every 0th step; expected 1, for all, or more"):
            ReusedChanges(0)


@pytest.mark.slow
def test_the_shortcuts_are_measured_on_the_small_world() -> None:
    from nested_attention.bench.shortcuts import EVERY, KEPT, TOLERANCES, run_shortcuts, shortcuts_table

    found = run_shortcuts(pictures=2, steps=2)
    assert len(found) == 2 + len(TOLERANCES) + len(EVERY) + 2 * len(KEPT)
    exact, half, finest = found[:3]
    assert exact.difference == 0
    assert half.difference > 0
    assert finest.difference <= found[1 + len(TOLERANCES)].difference
    assert all(one.largest >= one.difference for one in found)
    assert shortcuts_table(found).count("\n") == len(found) + 1
