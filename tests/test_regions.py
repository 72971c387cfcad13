"""Regions: masks on grids, the word's own attention, who sees whom in self-attention."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from second_gpu import SECOND, SecondGPU
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from nested_attention.attention import BoundSubject, nested_cross_attention
from nested_attention.regions import (
    RegionFinder,
    RegionSearch,
    area_mean,
    assign_regions,
    cells_of,
    fine,
    self_attention_bias,
    self_attention_share,
    watched_steps,
    word_attention,
)
from nested_attention.settings import SubjectSettings

SIZES = st.integers(1, 23)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class TestAreaMean:
    @given(h=SIZES, w=SIZES, rows=SIZES, columns=SIZES, value=st.sampled_from([0.0, 1.0]))
    def test_zeros_stay_zeros_and_ones_ones_to_the_bit(
        self, h: int, w: int, rows: int, columns: int, value: float
    ) -> None:
        assert torch.equal(
            area_mean(torch.full((2, h, w), value), (rows, columns)), torch.full((2, rows, columns), value)
        )

    @given(h=SIZES, w=SIZES, rows=SIZES, columns=SIZES, seed=st.integers(0, 99))
    def test_the_mean_and_the_range_are_kept(
        self, h: int, w: int, rows: int, columns: int, seed: int
    ) -> None:
        maps = rand(1, h, w, seed=seed)
        found = area_mean(maps, (rows, columns))
        assert torch.allclose(found.mean(), maps.mean(), atol=1e-6)
        assert found.min() >= maps.min() - 1e-6 and found.max() <= maps.max() + 1e-6

    @given(rows=st.integers(1, 6), columns=st.integers(1, 6), factor=st.integers(1, 5))
    def test_whole_cells_are_averaged_as_torch_does(self, rows: int, columns: int, factor: int) -> None:
        maps = rand(1, rows * factor, columns * factor, seed=factor)
        found = area_mean(maps, (rows, columns))
        assert torch.allclose(found, adaptive_avg_pool2d(maps, (rows, columns)), atol=1e-6)

    def test_a_border_inside_a_cell_leaves_it_the_share_it_covers(self) -> None:
        """912×1144 gives 57×72 cells at SDXL's second layer: the middle lies inside the 29th row."""
        mask = torch.zeros(912, 1144)
        mask[:456] = 1
        found = area_mean(mask, (57, 72))
        assert found[:28].eq(1).all() and found[29:].eq(0).all()
        assert torch.allclose(found[28], torch.tensor(0.5))

    def test_a_part_is_cut_out_of_the_whole(self) -> None:
        maps = rand(1, 16, 24)
        assert torch.allclose(
            area_mean(maps, (8, 6), (8, 12, 8, 12, 16, 24)), adaptive_avg_pool2d(maps[:, 8:, 12:], (8, 6))
        )


def test_attention_to_a_word_is_that_of_its_tokens_averaged_over_heads() -> None:
    q, k = (torch.randn(2, n, 8, generator=torch.Generator().manual_seed(n)) for n in (5, 7))
    word = torch.zeros(2, 7, dtype=torch.bool)
    word[0, 2:4] = word[1, 6] = True
    found = word_attention(q, k, word, heads=2)
    for row in range(2):
        expected = torch.zeros(5)
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            probs = (q[row, :, part] @ k[row, :, part].T / 2).softmax(-1)
            expected += probs[:, word[row]].sum(-1) / 2
        assert torch.allclose(found[row], expected, atol=1e-6)


class TestAssignment:
    def test_each_place_belongs_to_the_subject_that_draws_most_there(self) -> None:
        attention = torch.full((1, 2, 1, 4), 0.1)
        attention[0, 0, 0, :2], attention[0, 1, 0, 2:] = 0.3, 0.2
        region = assign_regions(attention)
        assert torch.equal(region[0, 0, 0, :2], torch.ones(2)) and torch.equal(
            region[0, 1, 0, 2:], torch.ones(2)
        )
        assert region[0, 0, 0, 2:].max() < 0.2 and region[0, 1, 0, :2].max() < 0.2

    def test_a_word_attended_more_everywhere_does_not_win_everywhere(self) -> None:
        attention = rand(1, 2, 6, 6) + 0.1
        louder = attention * torch.tensor([1.0, 50.0])[None, :, None, None]
        assert torch.allclose(assign_regions(louder), assign_regions(attention), atol=1e-5)

    def test_a_subject_alone_or_never_attended_has_the_whole_picture(self) -> None:
        attention = torch.stack([rand(1, 4, 4), torch.zeros(1, 4, 4)], dim=1)
        assert torch.equal(assign_regions(attention), torch.ones(1, 2, 4, 4))

    def test_both_orders_of_the_subjects_give_the_same_regions(self) -> None:
        attention = rand(2, 3, 5, 5)
        assert torch.equal(assign_regions(attention.flip(1)), assign_regions(attention).flip(1))

    def test_a_finder_adds_layers_and_parts_of_every_size_and_keeps_pictures_apart(self) -> None:
        finder = RegionFinder(2, ["one", "other"])
        assert finder.empty and finder.settle() is None
        left, right = torch.zeros(4, 4), torch.zeros(2, 2)
        left[:, :2], right[:, 1] = 1, 1
        whole = (0, 0, 8, 8, 8, 8)
        for subject, seen in ((0, left), (1, right)):
            finder.add(subject, 0, seen, whole)
        finder.add(1, 1, torch.ones(2, 2), (0, 0, 4, 8, 8, 8))
        found = finder.settle()
        assert found is not None
        assert torch.equal(found[0, 0], area_mean(left, (8, 8))) and torch.equal(
            found[0, 1], area_mean(right, (8, 8))
        )
        assert torch.equal(found[1], torch.ones(2, 8, 8))  # the one subject of the second picture

    def test_pictures_that_grow_or_shrink_while_they_are_watched_are_added_up_in_place(self) -> None:
        left = torch.tensor([[1.0, 0.0]]).expand(4, 2)
        finder, same = (RegionFinder(1, ["one", "other"]) for _ in range(2))
        wholes = [(8, 8), (10, 12), (20, 20), (4, 6)]
        for grown in wholes:
            for subject, seen in ((0, left), (1, 1 - left)):
                finder.add(subject, 0, seen, (0, 0, *grown, *grown))
                same.add(subject, 0, seen, (0, 0, 8, 8, 8, 8))
        finder.add(0, 0, torch.ones(1, 1), (5, 10, 5, 5, 20, 20))  # parts, too
        same.add(0, 0, torch.ones(1, 1), (2, 4, 2, 2, 8, 8))
        found, expected = finder.settle(), same.settle()
        assert found is not None and expected is not None
        assert torch.allclose(found, expected, atol=1e-6)

    @given(rows=SIZES, whole=st.integers(1, 40), data=st.data())
    def test_a_part_is_never_nothing_on_another_grid(
        self, rows: int, whole: int, data: st.DataObject
    ) -> None:
        top = data.draw(st.integers(0, whole - 1))
        height = data.draw(st.integers(1, whole - top))
        down, across = cells_of((top, 0, height, 1, whole, 1), (rows, 3))
        assert 0 <= down.start < down.stop <= rows and across == slice(0, 3)
        assert down.start * whole <= top * rows and (top + height) * rows <= down.stop * whole
        assert cells_of((top, 0, height, 1, whole, 1), (whole, 1))[0] == slice(top, top + height)

    def test_other_gpus_and_their_threads_add_to_what_a_finder_has(self) -> None:
        """Those threads are not in inference mode, where ComfyUI's nodes run."""
        seen, whole = rand(8, 8), (0, 0, 8, 8, 8, 8)
        finder, same = (RegionFinder(1, ["one", "other"]) for _ in range(2))
        for one in (finder, same):
            with torch.inference_mode():
                one.add(0, 0, seen, whole)
        with SecondGPU():
            finder.add(1, 0, (1 - seen).to(SECOND), whole)
        same.add(1, 0, 1 - seen, whole)
        found, expected = finder.settle(), same.settle()
        assert found is not None and expected is not None and torch.equal(found, expected)

    def test_a_sampling_too_short_to_find_regions_in_is_told_of(self) -> None:
        def told(names: list[str], steps: int) -> list[str]:
            found: list[str] = []
            RegionSearch(1, names, names, steps, start="start", tell=found.append)
            return found

        (one,) = told(["alice", "bob"], 1)
        assert "too few steps (1)" in one and "'alice', 'bob'" in one and "the whole picture" in one
        for names, steps in ((["alice", "bob"], 2), (["alice"], 1), (["alice", "bob"], 0)):
            assert told(names, steps) == []

    def test_a_search_looks_in_the_first_steps_and_then_holds_what_it_found(self) -> None:
        told: list[str] = []
        called, other = ["Alice", "Bob"], RegionFinder(1, [])
        search = RegionSearch(1, ["alice", "bob"], called, 10, start="start 0", tell=told.append)
        for number in range(3):
            search.step(number)
            assert search.watching and search.found is None
            kept, finder = search.observers((other,))
            assert kept is other and isinstance(finder, RegionFinder)
            finder.add(0, 0, torch.ones(2, 2), (0, 0, 8, 8, 8, 8))
        search.step(3)
        assert not search.watching and search.observers((other,)) == (other,)
        (one,) = told
        assert "no region was found for 'Bob'" in one and "(start 0)" in one
        found = search.found
        assert found is not None and torch.equal(found, torch.ones(1, 2, 8, 8))
        search.step(4)
        assert search.found is found and len(told) == 1

    def test_without_subjects_nothing_is_looked_for(self) -> None:
        search = RegionSearch(1, [], [], 1, start="", tell=pytest.fail)
        assert not search.watching and search.observers(()) == ()
        search.step(1)
        assert search.found is None

    def test_diffusers_tells_of_a_short_sampling_once(self, caplog: pytest.LogCaptureFixture) -> None:
        from nested_attention.hosts.diffusers import SubjectBinding, SubjectSlot
        from nested_attention.hosts.diffusers.regions import AutomaticRegions

        mask, slot = torch.ones(1, 1, dtype=torch.bool), cast(SubjectSlot, SimpleNamespace())
        bindings = [
            SubjectBinding(projections={}, mask=mask, name=name, settings=SubjectSettings(region_mode="auto"))
            for name in ("alice", "bob")
        ]
        AutomaticRegions(slot, bindings, steps=2)
        assert not caplog.messages
        regions = AutomaticRegions(slot, bindings, steps=1)
        regions.at(0)
        regions.moved(bindings, [0])
        (told,) = caplog.messages
        assert "too few steps (1)" in told and "'alice', 'bob'" in told

    def test_what_is_watched(self) -> None:
        whole = (0, 0, 128, 128, 128, 128)
        finder = RegionFinder(1, ["one"])
        assert finder.watches("up_blocks.0.attentions.2.transformer_blocks.0.attn2")
        assert not finder.watches("up_blocks.0.attentions.2.transformer_blocks.1.attn2")
        assert not finder.watches("down_blocks.2.attentions.0.transformer_blocks.0.attn2")
        assert fine((32, 32), whole) and not fine((16, 16), whole)
        assert [watched_steps(n) for n in (1, 3, 20)] == [1, 1, 6]


class TestSelfAttention:
    ON = torch.tensor([True, True])

    def test_nobody_sees_into_another_region_and_all_see_the_background(self) -> None:
        regions = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])  # alice, bob, background
        expected = torch.tensor([[[1.0, 0, 1], [0, 1, 1], [1, 1, 1]]])
        assert torch.equal(self_attention_share(regions, self.ON), expected)
        q, v = torch.randn(1, 1, 3, 4, generator=torch.Generator().manual_seed(0)), torch.eye(3)[None, None]
        seen = torch.nn.functional.scaled_dot_product_attention(
            q, q, v, attn_mask=self_attention_bias(regions, self.ON)
        )
        assert seen[0, 0, 0, 1] < 1e-4 and seen[0, 0, 1, 0] < 1e-4 and seen[0, 0, 2].min() > 0.01

    @given(seed=st.integers(0, 99), number=st.integers(2, 4))
    def test_a_query_always_sees_itself_and_shares_are_shares(self, seed: int, number: int) -> None:
        regions = rand(2, number, 6, seed=seed).round(decimals=1)
        share = self_attention_share(regions, torch.ones(number, dtype=torch.bool))
        assert share.min() >= 0 and share.max() <= 1
        assert torch.allclose(share, share.mT)
        assert share.diagonal(dim1=1, dim2=2).min() >= 0.5

    def test_one_subject_one_region_everywhere_or_nobody_asking_changes_nothing(self) -> None:
        ones = torch.ones(1, 2, 5)
        assert torch.equal(self_attention_bias(rand(1, 1, 5), self.ON[:1]), torch.zeros(1, 1, 5, 5))
        assert torch.equal(self_attention_bias(ones, self.ON), torch.zeros(1, 1, 5, 5))
        assert torch.equal(self_attention_bias(rand(1, 2, 5), ~self.ON), torch.zeros(1, 1, 5, 5))

    def test_one_of_a_pair_is_enough_and_other_pairs_are_left_alone(self) -> None:
        regions = torch.eye(3)[None]
        share = self_attention_share(regions, torch.tensor([True, False, False]))
        assert torch.equal(share[0], torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 1, 1]]))


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_only_queries_inside_a_region_change(bounded: bool, scale: float) -> None:
    q, k, v = (torch.randn(1, n, 8, generator=torch.Generator().manual_seed(n)) for n in (16, 7, 7))
    nested = torch.randn(2, 1, 3, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 7, dtype=torch.bool)
    mask[0, 3] = True
    half = area_mean(torch.tensor([[1.0, 0.0]]), (4, 4)).flatten()[None]
    subject = BoundSubject(
        key=nested[0], value=nested[1], mask=mask, region=half, bounded=bounded, attention_scale=scale
    )
    everywhere = BoundSubject(key=nested[0], value=nested[1], mask=mask, attention_scale=scale)
    found = nested_cross_attention(q, k, v, [subject], heads=2)
    inside = half[0] == 1
    full = nested_cross_attention(q, k, v, [everywhere], heads=2)
    assert torch.allclose(found[0, inside], full[0, inside], atol=1e-6)
    plain = nested_cross_attention(q, k, v, [], heads=2)
    if bounded:  # not attended at all outside
        plain = nested_cross_attention(q, k[:, ~mask[0]], v[:, ~mask[0]], [], heads=2)
    assert torch.allclose(found[0, ~inside], plain[0, ~inside], atol=1e-5)
