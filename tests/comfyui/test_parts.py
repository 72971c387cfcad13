"""The form that a layer runs in an empty slot on a CPU: rows without a subject by ComfyUI's attention, to the
bit, and the others as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

HEADS, TOKENS = 4, 77
FUNCTIONS = ("pytorch", "sub_quad", "split", "basic")


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which form each layer ran, in order."""
    from nested_attention.hosts.comfy.sampling import layer

    ran: list[str] = []

    def noted(name: str) -> None:
        original = getattr(layer, name)

        def call(*args: Any, **kwargs: Any) -> Tensor:
            ran.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(layer, name, call)

    noted("nested")
    noted("add_correction")
    return ran


Run = Callable[..., tuple[Tensor, Tensor, Tensor]]


@pytest.fixture
def run(world: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one layer on rows that are marked or not: its output, the attention of ComfyUI in use, and the
    reference's output."""
    import comfy.ldm.modules.attention as comfy_attention

    from nested_attention.attention import nested_cross_attention
    from nested_attention.hosts.comfy.sampling.carried import carried_in
    from nested_attention.hosts.comfy.sampling.chain import SubjectChain
    from nested_attention.hosts.comfy.sampling.layer import NestedLayer
    from nested_attention.kernels.rows import read_rows

    def layer(
        marked: list[bool],
        attend: Any = comfy_attention.attention_sub_quad,
        *,
        previous: Any = None,
        queries: int = 64,
        options: dict[str, Any] | None = None,
        wrap: Callable[[Any], Any] = lambda call: call,
        **settings: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        monkeypatch.setattr(comfy_attention, "optimized_attention", attend)
        model, clip = world.apply(world.model, world.clip, **settings)
        chain = SubjectChain.of(model)
        codes = clip.marks(clip.tokenize("a person")).codes
        marks = torch.cat([codes if here else torch.zeros_like(codes) for here in marked])
        carried = carried_in(chain.subjects, marks, torch.device("cpu"), chain._values(None))
        site = chain.addresses[0][1]
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(len(marked), n, 64, generator=generator) for n in (queries, TOKENS, TOKENS))
        whole = {"n_heads": HEADS, "attn_precision": None, **(options or {})}
        slot = NestedLayer(previous, site, carried, read_rows(carried, q.device))
        out = wrap(slot)(q, k, v, whole)
        plain = attend(q, k, v, heads=HEADS)
        subjects = [one.bind(site, q, TOKENS) for one in carried]
        return out, plain, nested_cross_attention(q, k, v, subjects, heads=HEADS)

    return layer


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("marked", [[False, True], [True, False], [False, True, True], [True, True]])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_without_a_subject_keep_their_bits(
    run: Run, forms: list[str], name: str, marked: list[bool], scale: float
) -> None:
    import comfy.ldm.modules.attention as comfy_attention

    out, plain, reference = run(marked, getattr(comfy_attention, f"attention_{name}"), attention_scale=scale)
    assert forms == ["nested"]
    rows = torch.tensor(marked)
    assert torch.equal(out[~rows], plain[~rows])
    torch.testing.assert_close(out, reference, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(out[rows], plain[rows], atol=1e-3)


def test_a_batch_whose_parts_round_otherwise_is_attended_as_a_whole(run: Run, forms: list[str]) -> None:
    import comfy.ldm.modules.attention as comfy_attention

    from nested_attention.hosts.comfy.sampling import parts

    def rounds_by_batch(q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any) -> Tensor:
        return comfy_attention.attention_pytorch(q, k, v, heads=heads, **kwargs) + 1e-6 * len(q)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "EXACT", (rounds_by_batch,))
        out, plain, reference = run([False, True], rounds_by_batch)
        assert forms == ["add_correction"]
        assert torch.equal(out[0], plain[0])
        torch.testing.assert_close(out, reference, rtol=1e-5, atol=1e-5)
        run([True, True], rounds_by_batch)  # there is no other row
    assert forms == ["add_correction", "nested"]


def test_rows_that_are_no_neighbours(run: Run, forms: list[str]) -> None:
    out, plain, reference = run([False, True, False])
    assert forms == ["add_correction"]
    assert torch.equal(out[[0, 2]], plain[[0, 2]])
    torch.testing.assert_close(out, reference, rtol=1e-5, atol=1e-5)


def test_without_a_marked_row_there_is_only_comfyui_s_attention(run: Run) -> None:
    import comfy.ldm.modules.attention as comfy_attention

    from nested_attention.hosts.comfy.sampling import parts

    calls, sub_quad = [], comfy_attention.attention_sub_quad

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(len(args[0]))
        return sub_quad(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "EXACT", (counting,))
        out, plain, _ = run([False, False], counting)
    assert torch.equal(out, plain)
    assert calls == [2, 2]  # the layer's and the test's own


@pytest.mark.parametrize("who", ["the slot", "an override", "another function"])
def test_where_others_have_a_say_theirs_is_run_for_all_rows(run: Run, forms: list[str], who: str) -> None:
    import comfy.ldm.modules.attention as comfy_attention

    seen: list[int] = []

    def foreign(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(len(q))
        return comfy_attention.attention_pytorch(q, k, v, heads=HEADS)

    arguments: dict[str, Any] = {
        "the slot": {"previous": foreign},
        "an override": {"options": {"optimized_attention_override": lambda f, *args, **_: foreign(*args)}},
        "another function": {"attend": foreign},
    }[who]
    out, _, reference = run([False, True], **arguments)
    assert forms == ["add_correction"]
    assert seen[0] == 2
    torch.testing.assert_close(out, reference, rtol=1e-5, atol=1e-5)


def test_outside_of_a_region_it_is_comfyui_s_attention_to_the_bit(
    run: Run, forms: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nested_attention.hosts.comfy.sampling.carried import CarriedSubject

    bind, inside = CarriedSubject.bind, torch.arange(64) % 2 == 0

    def bound(self: Any, *args: Any) -> Any:
        return replace(bind(self, *args), region=inside[None].float())

    monkeypatch.setattr(CarriedSubject, "bind", bound)
    out, plain, _ = run([False, True])
    assert forms == ["add_correction"]
    assert torch.equal(out[1, ~inside], plain[1, ~inside])
    assert not torch.allclose(out[1, inside], plain[1, inside], atol=1e-3)


def test_compiled_it_is_tried_nowhere(run: Run, forms: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from nested_attention.hosts.comfy.sampling import parts

    monkeypatch.setattr(parts, "_same_bits", lambda *_: pytest.fail("a trial under the compiler"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    out, plain, _ = run([False, True])
    assert forms == ["add_correction"]
    assert torch.equal(out[0], plain[0])


def test_each_shape_is_tried_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from nested_attention.hosts.comfy.sampling import parts

    parts._same_bits.cache_clear()
    for queries in (64, 64, 16):
        run([False, True], queries=queries)
    found = parts._same_bits.cache_info()
    assert (found.misses, found.hits) == (2, 1)
