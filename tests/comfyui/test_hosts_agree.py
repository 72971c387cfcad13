"""The same weights, prompt, latents and timestep give the same noise prediction in ComfyUI and in
diffusers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

TEXT = "a photo of a person with a pet, a person"
RELATIVE = 1e-4


@pytest.fixture(scope="module", params=["as SDXL", "as the small world"])
def both(world: Any, request: pytest.FixtureRequest) -> SimpleNamespace:
    """One UNet with random weights in both hosts, and subjects for it."""
    import tiny
    from diffusers import UNet2DConditionModel

    from nested_attention.avatars.comfy.world import Part, build_model

    crossed = ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]
    layers = [1, 1, 2]
    if request.param == "as the small world":
        crossed, layers = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"], [1, 1, 1]
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [32, 64, 64],
        "layers_per_block": 1,
        "transformer_layers_per_block": layers,
        "down_block_types": crossed,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(crossed)],
        "attention_head_dim": [2, 4, 4],
        "cross_attention_dim": tiny.CONTEXT,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": tiny.WIDTH_G + 6 * 256,
    }
    with torch.inference_mode(False):
        unet = UNet2DConditionModel(**config).eval().requires_grad_(False)
        tiny.randomise(unet, seed=30)
        model = build_model(Part(config, dict(unet.state_dict())), {"latent_channels": 4}, {})
    person, pet = (tiny.make_encoder(model, seed=n, word=w) for n, w in ((1, "person"), (2, "pet")))
    return SimpleNamespace(
        unet=unet,
        model=model,
        clip=world.clip,
        person=(person, tiny.make_subject(person, seed=3, images=2)),
        pet=(pet, tiny.make_subject(pet, seed=5)),
    )


def in_comfyui(model: Any, positive: Any, negative: Any) -> tuple[dict[str, Tensor], Tensor]:
    """What the UNet was given at the second step of a sampling with CFG, and what it returned."""
    from comfy.patcher_extension import WrappersMP
    from tiny import sample

    calls: list[tuple[dict[str, Tensor], Tensor]] = []

    def record(
        executor: Any, x: Tensor, t: Tensor, context: Tensor, y: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        out = executor(x, t, context, y, *args, **kwargs)
        calls.append(({"x": x, "t": t, "context": context, "y": y}, out))
        return out

    model = model.clone()
    model.add_wrapper(WrappersMP.DIFFUSION_MODEL, record)
    sample(model, positive, negative, batch=2)
    assert len(calls) == 3
    return calls[1]


def in_diffusers(unet: Any, given: dict[str, Tensor]) -> Tensor:
    pooled = given["y"][:, : given["y"].shape[1] - 6 * 256]
    size = torch.tensor([[64, 64, 0, 0, 64, 64]] * len(pooled))  # of 8 × 8 latents, as ComfyUI fills it in
    conditions = {"text_embeds": pooled, "time_ids": size}
    return unet(given["x"], given["t"], given["context"], added_cond_kwargs=conditions).sample


def binding(both: SimpleNamespace, who: str, word: str, scale: float, **more: Any) -> Any:
    """A subject in diffusers, with the positions of its word found apart from ComfyUI's CLIP. Rows: uncond
    twice, cond twice, as ComfyUI batches them."""
    from nested_attention.hosts.diffusers import SubjectBinding
    from nested_attention.prompt import find_word
    from nested_attention.settings import SubjectSettings

    encoder, subject = getattr(both, who)
    mask = torch.zeros(4, 77, dtype=torch.bool)
    mask[2:, find_word(lambda text: [t for t, _ in both.clip.tokenize(text)["l"][0]], TEXT, word)] = True
    return SubjectBinding(
        projections=encoder.encoder.project(subject.tokens),
        mask=mask,
        settings=SubjectSettings(alpha=6.0, norm="inner", attention_scale=scale, **more),
        token_bias=subject.token_bias,
    )


def apply(
    both: SimpleNamespace, model: Any, who: tuple[str, ...], scale: float, **more: Any
) -> tuple[Any, Any]:
    from tiny import apply_with

    clip = both.clip
    for one in who:
        model, clip = apply_with(
            model, clip, *getattr(both, one), word=one, attention_scale=scale, alpha=6.0, strength=1.0,
            when_missing="error", **more,
        )  # fmt: skip
    return model, clip


class Theirs:
    """Another pack's attention: text attention plus something of its own, in diffusers and in ComfyUI."""

    def __call__(
        self, attn: Any, hidden: Tensor, text: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        q, k, v = attn.to_q(hidden), attn.to_k(text), attn.to_v(text)
        return attn.to_out[0](self.attend(q, k, v, attn.heads))

    def in_comfyui(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        return self.attend(q, k, v, extra_options["n_heads"])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        b, _, c = q.shape
        split = [x.view(b, -1, heads, c // heads).transpose(1, 2) for x in (q, k, v)]
        return scaled_dot_product_attention(*split).transpose(1, 2).reshape(b, -1, c) + 0.3 * q.roll(1, -1)


def agree(ours: Tensor, theirs: Tensor) -> None:
    assert float((ours - theirs).abs().max()) <= RELATIVE * float(theirs.abs().max())


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("occupied", [False, True], ids=["free slots", "occupied slots"])
@pytest.mark.parametrize("who", [("person",), ("person", "pet")], ids="+".join)
def test_both_hosts_agree(both: SimpleNamespace, scale: float, occupied: bool, who: tuple[str, ...]) -> None:
    compare(both, scale, occupied, who)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("occupied", [False, True], ids=["free slots", "occupied slots"])
@pytest.mark.parametrize("injection", ["anchored", "everywhere"])
def test_both_hosts_agree_on_what_is_added(
    both: SimpleNamespace, scale: float, occupied: bool, injection: str
) -> None:
    compare(both, scale, occupied, ("person", "pet"), injection=injection, weight=1.5)


def compare(both: SimpleNamespace, scale: float, occupied: bool, who: tuple[str, ...], **more: Any) -> None:
    from tiny import encode

    from nested_attention.hosts.diffusers import SubjectSlot

    base = both.model.clone()
    before = dict(both.unet.attn_processors)
    try:
        if occupied:
            for name in before:
                if name.endswith("attn2.processor"):
                    both.unet.get_submodule(name.removesuffix(".processor")).set_processor(Theirs())
            for block in (
                [("input", n) for n in range(9)] + [("output", n) for n in range(9)] + [("middle", 0)]
            ):
                base.set_model_attn2_replace(Theirs().in_comfyui, *block)
        model, clip = apply(both, base, who, scale, **more)
        given, ours = in_comfyui(model, encode(clip, TEXT), encode(clip, "bad"))
        assert [len(x) for x in given.values()] == [4] * 4
        slot = SubjectSlot.install(both.unet)
        with slot.bind(*(binding(both, one, one, scale, **more) for one in who)):
            agree(ours, in_diffusers(both.unet, given))
        plain = in_diffusers(both.unet, given)
        slot.remove()
        agree(ours[:2], plain[:2])
        assert float((ours[2:] - plain[2:]).abs().max()) > 20 * RELATIVE * float(plain.abs().max())
    finally:
        both.unet.set_attn_processor(before)


def test_the_sites_of_the_converted_unet_are_those_of_diffusers(both: SimpleNamespace) -> None:
    """ComfyUI's addresses reach the layers that the sites name, by their weights."""
    from nested_attention.hosts.comfy.sampling.chain import SubjectChain
    from nested_attention.sites import diffusers_sites

    model, _ = apply(both, both.model, ("person",), 1.0)
    addresses = SubjectChain.of(model).addresses
    assert tuple(site for _, site in addresses) == tuple(site.name for site in diffusers_sites(both.unet))
    unet = both.model.model.diffusion_model
    for (kind, number, index), site in addresses:
        block = unet.middle_block if kind == "middle" else getattr(unet, f"{kind}_blocks")[number]
        (transformer,) = (layer for layer in block if hasattr(layer, "transformer_blocks"))
        theirs = both.unet.get_submodule(site).to_k.weight
        assert torch.equal(transformer.transformer_blocks[index].attn2.to_k.weight, theirs)


@pytest.mark.parametrize("size", [(56, 56), (300, 200), (77, 640)])
def test_both_hosts_show_the_vision_model_the_same(world: Any, size: tuple[int, int]) -> None:
    from comfy.clip_vision import clip_preprocess

    from nested_attention.hosts.diffusers.vision import vision_input

    pictures = torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(0))
    ours = vision_input(pictures.permute(0, 3, 1, 2), 224)
    torch.testing.assert_close(ours, clip_preprocess(pictures, 224), rtol=0, atol=1e-6)
