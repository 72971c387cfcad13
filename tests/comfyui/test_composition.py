"""Apply Subject together with what other packs put into a MODEL, and with every guider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


class ForeignReplace:
    """The class that several packs put into a cross-attention slot, and add to when they find something
    there."""

    def __init__(self, callback: Callable[..., Tensor], **kwargs: Any) -> None:
        self.callbacks = [(callback, kwargs)]

    def add(self, callback: Callable[..., Tensor], **kwargs: Any) -> None:
        self.callbacks.append((callback, kwargs))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        out = optimized_attention(q, k, v, extra_options["n_heads"])
        for callback, kwargs in self.callbacks:
            out = out + callback(q, **kwargs)
        return out.to(q.dtype)


def put_foreign(model: Any, weight: float, *, depth: int = 3) -> Any:
    """As those packs do: a new object in an empty slot, `.add` where there is one, on a clone of the
    MODEL."""
    model = model.clone()
    options = model.model_options["transformer_options"] = dict(model.model_options["transformer_options"])
    slots = options.setdefault("patches_replace", {}).setdefault("attn2", {})
    for key in (("input", 5, 0), ("output", 1, 1), ("middle", 0, 0), ("middle", 1, 0)):
        key = key[:depth]
        if key in slots:
            slots[key].add(lambda q, scale: scale * q.roll(1, -1), scale=weight)
        else:
            slots[key] = ForeignReplace(lambda q, scale: scale * q.roll(1, -1), scale=weight)
    return model


@pytest.mark.composes(
    "IPAdapter, InstantID, PuLID (replaced cross-attention)",
    order="both",
    note="what they add is not rescaled; shown with a stand-in of the class they use, not with the packs",
)
@pytest.mark.parametrize("depth", [2, 3])
def test_a_foreign_object_in_the_slot_before_and_after(world: Any, depth: int) -> None:
    from tiny import carries, encode, same, sample

    before, clip = world.apply(put_foreign(world.model, 0.5, depth=depth), world.clip)
    after = put_foreign(world.apply(world.model, world.clip)[0], 0.5, depth=depth)
    positive, negative = encode(clip, "a person"), encode(clip, "bad")
    plain = encode(world.clip, "a person")
    ours = sample(before, positive, negative)
    assert same(sample(after, positive, negative), ours)
    assert carries(ours, sample(put_foreign(world.model, 0.5, depth=depth), plain, negative))
    assert carries(ours, sample(world.apply(world.model, world.clip)[0], positive, negative))

    twice = put_foreign(put_foreign(after, 0.25, depth=depth), 0.25, depth=depth)  # calls .add
    assert carries(sample(twice, positive, negative), ours)
    off, off_clip = world.apply(put_foreign(world.model, 0.5, depth=depth), world.clip, strength=0.0)
    assert same(
        sample(off, encode(off_clip, "a person"), negative),
        sample(put_foreign(world.model, 0.5, depth=depth), plain, negative),
    )


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("occupied", [False, True])
def test_a_layer_is_what_was_there_plus_the_correction(world: Any, scale: float, occupied: bool) -> None:
    """What another pack adds is never rescaled, whatever λ does to the text's attention."""
    from comfy.ldm.modules.attention import optimized_attention

    from nested_attention.attention import nested_cross_attention
    from nested_attention.hosts.comfy.sampling.carried import carried_in
    from nested_attention.hosts.comfy.sampling.chain import SubjectChain
    from nested_attention.hosts.comfy.sampling.layer import NestedLayer

    model, clip = world.apply(world.model, world.clip, attention_scale=scale)
    codes = clip.marks(clip.tokenize("a person")).codes
    _, site = SubjectChain.of(model).addresses[0]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 64, generator=generator) for n in (16, 77, 77))
    chain = SubjectChain.of(model)
    carried = carried_in(
        chain.subjects, torch.cat([torch.zeros_like(codes), codes]), q.device, chain._values(None)
    )
    options = {"n_heads": 4, "attn_precision": None}
    there = (lambda q, k, v, options: optimized_attention(q, k, v, heads=4) + 0.3 * q) if occupied else None
    out = NestedLayer(there, site, carried)(q, k, v, options)
    nested = nested_cross_attention(q, k, v, [one.bind(site, q, 77) for one in carried], heads=4)
    torch.testing.assert_close(out, nested + (0.3 * q if occupied else 0), rtol=1e-5, atol=1e-5)
    plain = optimized_attention(q, k, v, heads=4) + (0.3 * q if occupied else 0)
    assert torch.equal(out[0], plain[0])  # the row without a subject
    assert not torch.allclose(out[1], plain[1], atol=1e-3)


@pytest.mark.composes(
    "Patches before and after cross-attention (attn2_patch, attn2_output_patch)", order="both"
)
def test_patches_before_the_projections_and_after(world: Any) -> None:
    """Packs that lengthen the text context (attn2_patch) or change what comes out (attn2_output_patch)."""
    from tiny import carries, encode, same, sample

    def longer(n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]) -> Any:
        return n, torch.cat([context, context[:, :8]], dim=1), torch.cat([value, value[:, :8]], dim=1)

    def halved(n: Tensor, extra_options: dict[str, Any]) -> Tensor:
        return 0.5 * n

    def patched(model: Any) -> Any:
        model = model.clone()
        model.set_model_attn2_patch(longer)
        model.set_model_attn2_output_patch(halved)
        return model

    model, clip = world.apply(world.model, world.clip)
    positive, negative = encode(clip, "a person"), encode(clip, "bad")
    ours = sample(patched(model), positive, negative)
    assert carries(ours, sample(patched(world.model), encode(world.clip, "a person"), negative))
    assert same(sample(world.apply(patched(world.model), world.clip)[0], positive, negative), ours)


@pytest.mark.composes(
    "Functions around the model that split batches (tiled samplers)",
    order="after",
    note="they have to split all of the model's arguments; one that does not is told so",
)
def test_a_function_around_the_model_that_splits_batches(world: Any) -> None:
    """Packs that tile or batch by hand pass every tensor of `c` through; one that does not is told off."""
    from tiny import carries, encode, sample

    from nested_attention.errors import NestedAttentionError

    def split(apply_model: Any, args: dict[str, Any], keep_marks: bool = True) -> Tensor:
        outs = []
        for i in range(len(args["input"])):
            c = {
                name: value[i : i + 1]
                if isinstance(value, Tensor) and (keep_marks or "marks" not in name)
                else value
                for name, value in args["c"].items()
            }
            outs.append(apply_model(args["input"][i : i + 1], args["timestep"][i : i + 1], **c))
        return torch.cat(outs)

    model, clip = world.apply(world.model, world.clip)
    positive, negative = encode(clip, "a person"), encode(clip, "bad")
    ours = sample(model, positive, negative)
    by_hand = model.clone()
    by_hand.set_model_unet_function_wrapper(split)
    assert not carries(sample(by_hand, positive, negative), ours, threshold=2e-5)

    careless = model.clone()
    careless.set_model_unet_function_wrapper(lambda f, args: split(f, args, keep_marks=False))
    with pytest.raises(
        NestedAttentionError, match="runs on 1 pictures at once and the prompts' marks are for 2"
    ):
        sample(careless, positive, negative)


def guiders(model: Any, positive: Any, negative: Any, other: Any) -> dict[str, Any]:
    """Every guider of ComfyUI that has prompts to steer away from, with `other` as its empty or middle
    prompt."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import BasicGuider, DualCFGGuider
    from comfy_extras.nodes_perpneg import PerpNegGuider
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    plain = comfy.samplers.CFGGuider(model)
    plain.set_conds(positive, negative)
    plain.set_cfg(4.0)
    sag = comfy.samplers.CFGGuider(SelfAttentionGuidance.execute(model, 0.5, 2.0)[0])
    sag.set_conds(positive, negative)
    sag.set_cfg(4.0)
    return {
        "CFG": plain,
        "SAG": sag,
        "PerpNeg": PerpNegGuider.execute(model, positive, negative, other, 4.0, 1.0)[0],
        "DualCFG": DualCFGGuider().get_guider(model, positive, other, negative, 4.0, 3.0, "regular")[0],
        "DualCFG nested": DualCFGGuider().get_guider(model, positive, other, negative, 4.0, 3.0, "nested")[0],
        "Basic": BasicGuider().get_guider(model, positive)[0],
    }


@pytest.mark.composes(
    "Guiders: CFG, Basic, DualCFG, PerpNeg",
    order="after",
    note="the positive prompts carry the subject, negative and empty ones do not",
)
@pytest.mark.parametrize("name", ["CFG", "SAG", "PerpNeg", "DualCFG", "DualCFG nested", "Basic"])
def test_guiders_carry_the_subject_in_the_positive_only(world: Any, name: str) -> None:
    from tiny import carries, encode, same, sample_with

    model, clip = world.apply(world.model, world.clip)
    texts = "a person by the sea", "an ugly person", "a person"
    positive, negative, other = (encode(clip, text) for text in texts)
    plain, plain_negative, plain_other = (encode(world.clip, text) for text in texts)
    ours = sample_with(guiders(model, positive, plain_negative, plain_other)[name])
    assert carries(ours, sample_with(guiders(world.model, plain, plain_negative, plain_other)[name]))
    assert same(sample_with(guiders(model, positive, negative, other)[name]), ours)


@pytest.mark.composes(
    "PerpNeg, the deprecated model patch",
    order="after",
    note="its empty prompt goes without subjects, and a warning says so",
)
def test_the_deprecated_perp_neg_node(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its empty prompt reaches the model by a way of its own, which does not say what it is."""
    from comfy_extras.nodes_perpneg import PerpNeg
    from tiny import carries, encode, same, sample

    model, clip = world.apply(world.model, world.clip)
    positive, negative = encode(clip, "a person by the sea"), encode(clip, "bad")
    ours = sample(PerpNeg.execute(model, encode(world.clip, "a person"), 1.0)[0], positive, negative)
    with_word = sample(PerpNeg.execute(model, encode(clip, "a person"), 1.0)[0], positive, negative)
    assert same(with_word, ours)
    assert "reached the model by a way that does not say" in caplog.text
    plain = PerpNeg.execute(world.model, encode(world.clip, "a person"), 1.0)[0]
    assert carries(ours, sample(plain, encode(world.clip, "a person by the sea"), negative))


@pytest.mark.composes("ControlNet", order="prompt", note="it sees the prompt without the subject")
def test_a_controlnet_runs_beside(world: Any) -> None:
    """A ControlNet sees the prompts as they are, and its own layers are left alone."""
    import comfy.controlnet
    from nodes import ControlNetApplyAdvanced
    from tiny import carries, encode, sample

    class Control(comfy.controlnet.ControlBase):
        def get_control(self, x: Tensor, t: Tensor, cond: Any, batched: int, transformer_options: Any) -> Any:
            assert cond["c_crossattn"].shape[0] == x.shape[0]
            assert not transformer_options.get("patches_replace")
            return {"input": [], "middle": [0.1 * torch.ones(x.shape[0], 64, 2, 2)], "output": []}

        def copy(self) -> Any:
            copied = Control()
            self.copy_to(copied)
            return copied

    def controlled(clip: Any) -> Any:
        conds = encode(clip, "a person"), encode(clip, "bad")
        return ControlNetApplyAdvanced().apply_controlnet(
            *conds, Control(), torch.zeros(1, 64, 64, 3), 1.0, 0.0, 1.0
        )

    model, clip = world.apply(world.model, world.clip)
    ours = sample(model, *controlled(clip))
    assert carries(ours, sample(world.model, *controlled(world.clip)))
    assert carries(ours, sample(model, encode(clip, "a person"), encode(clip, "bad")))


@pytest.mark.composes("LoRA hooks on a prompt", order="prompt")
def test_hooks_on_a_prompt(world: Any) -> None:
    """Prompts with different hooks run in passes of their own."""
    import comfy.hooks
    from test_text_nodes import lora_for
    from tiny import carries, encode, sample

    hooks = comfy.hooks.create_hook_lora(lora_for(world.model, world.clip), 1.0, 0.0)

    def hooked(clip: Any) -> Any:
        return comfy.hooks.set_conds_props([encode(clip, "a person")], 1.0, "default", hooks=hooks)[0]

    model, clip = world.apply(world.model, world.clip)
    negative = encode(world.clip, "bad")
    ours = sample(model, hooked(clip), negative)
    assert carries(ours, sample(world.model, hooked(world.clip), negative))
    assert carries(ours, sample(model, encode(clip, "a person"), negative))


def test_odd_sizes_and_deep_shrink(world: Any) -> None:
    from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
    from tiny import carries, encode, sample

    model, clip = world.apply(world.model, world.clip)
    plain = encode(world.clip, "a person"), encode(world.clip, "bad")
    ours = encode(clip, "a person"), encode(clip, "bad")
    shrink = (2, 2.0, 0.0, 0.5, True, "bicubic", "bicubic")
    assert carries(sample(model, *ours, size=11), sample(world.model, *plain, size=11))
    node = PatchModelAddDownscale.execute
    assert carries(
        sample(node(model, *shrink)[0], *ours, size=16),
        sample(node(world.model, *shrink)[0], *plain, size=16),
    )
