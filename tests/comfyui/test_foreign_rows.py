"""Nodes of other packs that change which rows, tokens and tiles a forward pass has, shown with small
stand-ins."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_placed_subjects import left
from torch import Tensor

composes = pytest.mark.composes


def tiled(model: Any, *, roll: int = 0) -> Any:
    """Runs the model on the left and the right half of the latents, repeating all else for both, as the tiled
    samplers do; none of it says which half it is."""

    def by_halves(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        x = args["input"].roll(roll, -1)
        halves = x.chunk(2, dim=-1)
        count = 2 * len(x)
        c = {
            k: v.repeat(2, *[1] * (v.dim() - 1)) if isinstance(v, Tensor) else v for k, v in args["c"].items()
        }
        out = apply_model(torch.cat(halves), args["timestep"].repeat(2)[:count], **c)
        return torch.cat(out.chunk(2), dim=-1).roll(-roll, -1)

    model = model.clone()
    model.set_model_unet_function_wrapper(by_halves)
    return model


def drawn(model: Any, positive: Any, negative: Any, **options: Any) -> Tensor:
    from tiny import sample

    return sample(model, positive, negative, **{"size": 16, "steps": 2, **options})


@composes(
    "Tiles around the model (Tiled Diffusion)",
    order="after",
    note="a region is cut to each tile, which is found by its noise; where it is not, an error says so. "
    "Shown with a stand-in",
)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("bounded", [False, True])
def test_a_region_on_tiles_is_cut(world: Any, batch: int, bounded: bool) -> None:
    from tiny import carries, encode, same

    everywhere, clip = world.apply(world.model, world.clip)
    placed, _ = world.apply(world.model, world.clip, region=left(), bounded=bounded)
    conds = encode(clip, "a person"), encode(clip, "bad")
    plain = drawn(tiled(world.model), encode(world.clip, "a person"), conds[1], batch=batch)
    full, cut = (drawn(tiled(model), *conds, batch=batch) for model in (everywhere, placed))
    torch.testing.assert_close(cut[..., :8], full[..., :8], rtol=1e-4, atol=1e-4)
    assert carries(full[..., 8:], plain[..., 8:])
    if bounded:  # the word is not attended there at all
        assert carries(cut[..., 8:], plain[..., 8:]) and carries(cut[..., 8:], full[..., 8:])
    else:
        assert not carries(cut[..., 8:], plain[..., 8:], threshold=1e-5)
    ones = world.apply(world.model, world.clip, region=torch.ones(1, 8, 8), bounded=bounded)[0]
    assert same(drawn(tiled(ones), *conds, batch=batch), full)


def test_tiles_that_are_nowhere_in_the_picture_are_refused(world: Any) -> None:
    from tiny import encode

    from nested_attention.errors import NestedAttentionError

    placed, clip = world.apply(world.model, world.clip, region=left())
    conds = encode(clip, "a person"), encode(clip, "bad")
    with pytest.raises(NestedAttentionError, match="16 × 8 of a picture's 16 × 16 latent cells.*rolls them"):
        drawn(tiled(placed, roll=3), *conds)
    drawn(tiled(world.apply(world.model, world.clip)[0], roll=3), *conds)  # no region, no matter


@pytest.mark.parametrize("size", [8, 24])
def test_a_sampler_that_runs_parts_of_its_pictures(world: Any, size: int) -> None:
    """A smaller latent may be a part as well as a reduction; a larger one is the whole, enlarged."""
    import comfy.samplers
    from tiny import encode

    from nested_attention.errors import NestedAttentionError

    def run(model: Any, clip: Any) -> None:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(encode(clip, "a person"), encode(clip, "bad"))
        guider.set_cfg(4.0)
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        sampler = comfy.samplers.KSAMPLER(
            lambda model, x, sigmas, extra_args, **_: (
                model(
                    torch.nn.functional.interpolate(x, (size, size)),
                    sigmas[:1].expand(len(x)),
                    **extra_args,
                ),
                x,
            )[1]
        )
        guider.sample(
            noise, torch.zeros_like(noise), sampler, torch.tensor([5.0, 0.0]), disable_pbar=True, seed=0
        )

    placed = world.apply(world.model, world.clip, region=left())
    if size < 16:
        with pytest.raises(
            NestedAttentionError, match="runs 8 × 8 latent cells of pictures that have 16 × 16"
        ):
            run(*placed)
        run(*world.apply(world.model, world.clip))
    else:
        run(*placed)


def guided_by_rows(model: Any) -> Any:
    """Appends a row to the text context and attends to it in the layers' own forward, as NAG's sampler
    does."""
    from comfy.patcher_extension import WrappersMP

    def longer(executor: Any, x: Tensor, t: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layers = [m.attn2 for m in executor.class_obj.modules() if hasattr(m, "attn2")]
        plain = type(layers[0]).forward

        def forward(layer: Any, n: Tensor, context: Tensor, **options: Any) -> Tensor:
            out = plain(layer, n, context=context[: len(n)], **options)
            return out + 0.5 * (out - plain(layer, n[-1:], context=context[len(n) :], **options))

        for layer in layers:
            layer.forward = forward.__get__(layer)
        try:
            return executor(x, t, torch.cat([context, context[:1]]), *args, **kwargs)
        finally:
            for layer in layers:
                del layer.forward

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "guidance", longer)
    return model


def test_rows_that_a_sampler_appends_to_the_context_are_refused(world: Any) -> None:
    from tiny import carries, encode, same

    from nested_attention.errors import NestedAttentionError

    model, clip = world.apply(world.model, world.clip, when_missing="warn")
    bad = encode(clip, "bad")
    plain = drawn(guided_by_rows(world.model), encode(world.clip, "a house"), bad)
    assert carries(plain, drawn(world.model, encode(world.clip, "a house"), bad))
    assert same(drawn(guided_by_rows(model), encode(clip, "a house"), bad), plain)
    with pytest.raises(NestedAttentionError, match="queries for 2 prompts and keys for 3.*ComfyUI-NAG"):
        drawn(guided_by_rows(model), encode(clip, "a person"), bad)


def twice(model: Any, clip: Any) -> tuple[Any, Any]:
    """A CLIP that gives each token a row for its key and one for its value, and a MODEL that parts them, as
    NegPip does."""
    model, clip = model.clone(), clip.clone()
    for tower in ("clip_l", "clip_g"):
        encode = getattr(clip.cond_stage_model, tower).encode_token_weights

        def doubled(tokens: Any, encode: Any = encode) -> Any:
            rows, *rest = encode(tokens)
            return rows.repeat_interleave(2, dim=1), *rest

        clip.patcher.add_object_patch(f"{tower}.encode_token_weights", doubled)
    model.set_model_attn2_patch(lambda n, k, v, options: (n, k[:, 0::2], v[:, 1::2]))
    return model, clip


@composes("Two rows a token (NegPip)", order="both", note="shown with a stand-in")
@pytest.mark.parametrize("chunks", [(1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_marks_where_each_token_has_two_rows(
    world: Any, caplog: pytest.LogCaptureFixture, chunks: tuple[int, int], before: bool
) -> None:
    from tiny import encode

    from nested_attention.hosts.comfy import mark_prompt
    from nested_attention.hosts.comfy.notices import warn_once

    model, clip = world.apply(world.model, world.clip)
    texts = [
        ", ".join([who, *["grey house by the sea"] * (16 * n - 16)])
        for who, n in zip(("a person", "bad"), chunks, strict=True)
    ]
    expected = drawn(model, *(encode(clip, text) for text in texts))
    warn_once.cache_clear()
    if before:
        model, clip = world.apply(*twice(world.model, world.clip))
    else:
        model, clip = twice(*world.apply(world.model, world.clip))
    conds = [encode(clip, text) for text in texts]
    assert [cond[0][0].shape[1] // 154 for cond in conds] == list(chunks)
    with caplog.at_level(logging.WARNING, "nested_attention"):
        torch.testing.assert_close(drawn(model, *conds), expected, rtol=1e-4, atol=1e-4)
    assert not [r for r in caplog.records if r.name == "nested_attention"]
    bare = [[conds[0][0][0].clone(), {"pooled_output": conds[0][0][1]["pooled_output"]}]]
    marked = mark_prompt(bare, clip, texts[0])
    torch.testing.assert_close(drawn(model, marked, conds[1]), expected, rtol=1e-4, atol=1e-4)


def together(clip: Any, *texts: str) -> Any:
    """A conditioning of one prompt a picture, as nodes for batches of prompts build it: shorter ones are
    repeated, as ComfyUI repeats them."""
    encoded = [clip.encode_from_tokens(clip.tokenize(text), return_pooled=True) for text in texts]
    longest = max(context.shape[1] for context, _ in encoded)
    contexts = [context.repeat(1, longest // context.shape[1], 1) for context, _ in encoded]
    return [[torch.cat(contexts), {"pooled_output": torch.cat([pooled for _, pooled in encoded])}]]


def two(world: Any, **settings: Any) -> tuple[Any, Any]:
    chain = world.apply(world.model, world.clip, name="alice", when_missing="warn", **settings)
    return world.apply(*chain, world.bob, name="bob", when_missing="warn")


@composes(
    "A prompt for each picture (batches of prompts)",
    order="prompt",
    note="each carries its own subjects; of two that read the same with different subjects an error says so",
)
@pytest.mark.parametrize("more", ["", ", a house" * 40])
def test_a_prompt_for_each_picture(world: Any, more: str) -> None:
    from tiny import carries, encode

    from nested_attention.errors import NestedAttentionError
    from nested_attention.hosts.comfy import mark_prompt

    model, clip = two(world)
    texts = "<alice> by the sea", f"the forest, and <bob:man>{more}"
    bad = encode(clip, "bad")
    both = drawn(model, together(clip, *texts), bad, batch=2)
    without = together(world.clip, "person by the sea", f"the forest, and man{more}")
    plain = drawn(world.model, without, bad, batch=2)
    for row, text in enumerate(texts):
        alone = drawn(model, encode(clip, text), bad, batch=2)
        torch.testing.assert_close(both[row], alone[row], rtol=1e-4, atol=1e-4)
        assert carries(both[row], plain[row])
    with pytest.raises(NestedAttentionError, match="two prompts read the same once placeholders are words"):
        same_text = together(clip, "<alice> at home", "<bob> at home")
        drawn(model, same_text, bad, batch=2)
    other = together(world.clip, *("a person at sea", "a house"))
    with pytest.raises(NestedAttentionError, match="Mark Prompt: the conditioning has 2 prompts, one a pic"):
        mark_prompt(other, world.apply(world.model, world.clip)[1], "a person at sea")
    equal = together(world.clip, *["a person at sea"] * 2)
    marked = mark_prompt(equal, world.apply(world.model, world.clip)[1], "a person at sea")
    applied, alone_clip = world.apply(world.model, world.clip)
    torch.testing.assert_close(
        drawn(applied, marked, bad, batch=2),
        drawn(applied, encode(alone_clip, "a person at sea"), bad, batch=2),
        rtol=1e-4,
        atol=1e-4,
    )


def couple(model: Any, conds: list[Any], shares: list[float], scale: float = 1.0) -> Any:
    """Attention couple: more rows for the positive prompt, one for each further prompt, mixed behind the
    layer."""
    contexts = [cond[0][0].to(torch.float32, copy=True) for cond in conds]

    def enlarge(n: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Any:
        which = options["cond_or_uncond"]
        parts = zip(n.chunk(len(which)), k.chunk(len(which)), which, strict=True)
        rows = [
            (query, key)
            if kind == 1
            else (
                query.repeat(1 + len(conds), 1, 1),
                torch.cat([scale * key, *(one.repeat(len(key), 1, 1) for one in contexts)]),
            )
            for query, key, kind in parts
        ]
        queries, keys = (torch.cat(one) for one in zip(*rows, strict=True))
        return queries, keys, keys

    def mix(out: Tensor, options: dict[str, Any]) -> Tensor:
        which = options["cond_or_uncond"]
        each = len(out) // sum(1 if kind == 1 else 1 + len(conds) for kind in which)
        mixed, at = [], 0
        for kind in which:
            size = each * (1 if kind == 1 else 1 + len(conds))
            rows = out[at : at + size]
            weights = out.new_tensor(shares)[:, None, None, None]
            mixed.append(rows if kind == 1 else (rows.unflatten(0, (-1, each)) * weights).sum(dim=0))
            at += size
        return torch.cat(mixed)

    model = model.clone()
    model.set_model_attn2_patch(enlarge)
    model.set_model_attn2_output_patch(mix)
    return model


@composes(
    "Attention couple (rows of its own for each prompt)",
    order="both",
    note="each prompt carries its subjects, without regions; of two that read the same an error says so. "
    "Shown with a stand-in",
)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shares", [[0, 1, 0], [0, 0, 1], [1, 0, 0]], ids=["first", "second", "base"])
def test_attention_couple(world: Any, shares: list[float], batch: int) -> None:
    """With all of the weight on one prompt, it is that prompt alone."""
    from tiny import carries, encode, same

    model, clip = two(world)
    texts = "two people by the sea", "<alice> in a forest", "<bob:man> at home"
    base, *others = (encode(clip, text) for text in texts)
    bad = encode(clip, "bad")
    chosen = (base, *others)[shares.index(1)]
    pooled = {"pooled_output": base[0][1]["pooled_output"]}
    expected = drawn(model, [[chosen[0][0], {**chosen[0][1], **pooled}]], bad, batch=batch)
    found = drawn(couple(model, others, shares), base, bad, batch=batch)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    first = world.apply(couple(world.model, others, shares), world.clip, name="alice", when_missing="warn")
    before, _ = world.apply(*first, world.bob, name="bob", when_missing="warn")
    assert same(drawn(before, base, bad, batch=batch), found)
    plain = drawn(couple(world.model, others, shares), base, bad, batch=batch)
    assert carries(found, plain) == (shares != [1, 0, 0])


def test_what_attention_couple_cannot_tell_is_said(world: Any) -> None:
    from tiny import encode, same

    from nested_attention.errors import NestedAttentionError

    model, clip = two(world)
    bad, base = encode(clip, "bad"), encode(clip, "two people by the sea")
    alike = [encode(clip, "<alice> at home"), encode(clip, "<bob> at home")]
    with pytest.raises(NestedAttentionError, match="two prompts read the same"):
        drawn(couple(model, alike, [0, 1, 1]), base, bad)
    with pytest.raises(NestedAttentionError, match="two prompts read the same"):
        drawn(couple(model, alike[1:], [0, 1]), alike[0], bad)  # one of them is the sampler's
    with pytest.raises(NestedAttentionError, match="changes the one that carries a subject"):
        drawn(couple(model, [encode(clip, "a house")], [0, 1], scale=0.5), alike[0], bad)
    placed, placed_clip = world.apply(world.model, world.clip, region=left())
    with pytest.raises(NestedAttentionError, match="differs from picture to picture or place to place"):
        drawn(couple(placed, [encode(placed_clip, "a person")], [0, 1]), base, bad)
    # Nobody's rows, and nobody in any: as without us, once it has been said that a subject is missing.
    strict, strict_clip = world.apply(world.model, world.clip)
    with pytest.raises(NestedAttentionError, match="no prompt carries the subject 'person'"):
        drawn(couple(strict, [encode(strict_clip, "a house")], [0, 1]), encode(strict_clip, "a tree"), bad)
    lenient, lenient_clip = world.apply(world.model, world.clip, when_missing="warn")
    house = encode(lenient_clip, "a house")
    assert same(
        drawn(couple(lenient, [house], [0, 1]), encode(lenient_clip, "a tree"), bad),
        drawn(couple(world.model, [house], [0, 1]), encode(world.clip, "a tree"), bad),
    )


def test_a_prompt_that_never_comes_is_missed_after_the_first_step(world: Any) -> None:
    """It was encoded, and a pack that might bring it in does not."""
    from tiny import encode

    from nested_attention.errors import NestedAttentionError

    model, clip = world.apply(world.model, world.clip)
    kept = encode(clip, "a person in a forest, seen from afar")
    patched = model.clone()
    patched.set_model_attn2_patch(lambda n, k, v, options: (n, k, v))
    steps: list[int] = []
    with pytest.raises(NestedAttentionError, match="no prompt carries.*was encoded too.*Mark Prompt"):
        drawn(
            patched,
            encode(clip, "a house"),
            encode(clip, "bad"),
            callback=lambda i, *_: steps.append(i),
        )
    assert steps == [] and kept


def test_parts_of_a_prompt_that_are_encoded_apart(world: Any) -> None:
    """As CAT does: the joined conditioning has the marks of a part without the word."""
    from tiny import encode

    from nested_attention.errors import NestedAttentionError
    from nested_attention.hosts.comfy import mark_prompt

    model, clip = world.apply(world.model, world.clip)
    first, second = encode(clip, "a house"), encode(clip, "a person")
    joined = [[torch.cat([first[0][0], second[0][0]], dim=1), first[0][1]]]
    message = (
        "it has the words a, house.*A text that does carry it was encoded too .it has the words a, person"
    )
    with pytest.raises(NestedAttentionError, match=message + ".*Mark Prompt"):
        drawn(model, joined, encode(clip, "bad"))
    marked = mark_prompt([[joined[0][0], {"pooled_output": first[0][1]["pooled_output"]}]], clip, "a person")
    drawn(model, marked, encode(clip, "bad"))


def test_names_of_one_checksum_are_two_names(world: Any) -> None:
    """plumless and buckeroo have the same CRC-32. Chains that cross must not exchange their subjects."""
    from tiny import carries, encode, same

    alice, _ = world.apply(world.model, world.clip, name="plumless", when_missing="warn")
    _, clip = world.apply(world.model, world.clip, world.bob, name="buckeroo", when_missing="warn")
    bad = encode(world.clip, "bad")
    plain = drawn(world.model, encode(world.clip, "person"), bad)
    assert same(drawn(alice, encode(clip, "<buckeroo>"), bad), plain)
    both, both_clip = world.apply(
        *world.apply(world.model, world.clip, name="plumless", when_missing="warn"),
        world.bob,
        name="buckeroo",
        when_missing="warn",
    )
    pictures = [drawn(both, encode(both_clip, text), bad) for text in ("<plumless>", "<buckeroo>")]
    assert carries(pictures[0], pictures[1]) and carries(pictures[0], plain)
    assert same(drawn(both, encode(clip, "<buckeroo>"), bad), pictures[1])
