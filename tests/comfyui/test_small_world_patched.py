"""The small world as it is shipped, with a subject and with what users patch models with, in both orders.

test_compatibility.py shows more of each patch, on a model of random weights; here the model has learned to
draw, and the subject is a person whom it is shown.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_compatibility import (
    deep_shrink,
    free_u,
    free_u_2,
    hypertile,
    other_attention,
    perturbed,
    rescaled_cfg,
    self_attention_guidance,
)
from test_composition import put_foreign
from torch import Tensor

PROMPT = "a photo of a person in the middle with a scarf at the beach"


def foreign(model: Any) -> Any:
    """As IPAdapter, InstantID and PuLID patch."""
    return put_foreign(model, 3.0, depth=2)


def lora(model: Any) -> Any:
    """A LoRA on the cross-attention's keys, as a loader leaves it."""
    model = model.clone()
    patches = {}
    for key, weight in model.model.state_dict().items():
        if key.endswith("attn2.to_k.weight"):
            generator = torch.Generator().manual_seed(len(patches))
            patches[key] = (0.02 * torch.randn(weight.shape, generator=generator),)
    model.add_patches(patches, 1.0)
    return model


@pytest.fixture(scope="module")
def shipped(comfyui: Any) -> SimpleNamespace:
    from nested_attention.avatars.comfy.world import load_world
    from nested_attention.avatars.drawing.references import held_out, reference_picture
    from nested_attention.hosts.comfy import encode_subject, load_encoder_for_comfy
    from nested_attention.paths import SMALL_WORLD

    world = load_world(SMALL_WORLD)
    encoder = load_encoder_for_comfy(SMALL_WORLD / "person_encoder.safetensors")
    picture = torch.from_numpy(reference_picture(held_out("person", 7)).copy())[None].float() / 255
    with torch.inference_mode():
        subject = encode_subject(encoder, world.clip_vision, picture)
        world = SimpleNamespace(model=world.model, clip=world.clip, encoder=encoder, subject=subject)
        world.plain = drawn(*applied(world, world.model))
    return world


def applied(world: Any, model: Any) -> tuple[Any, Any]:
    from tiny import apply_with

    settings = {"attention_scale": 1.0, "alpha": 2.0, "strength": 1.0}
    settings |= {"word": "person", "when_missing": "error"}
    return apply_with(model, world.clip, world.encoder, world.subject, **settings)


def drawn(model: Any, clip: Any) -> Tensor:
    import comfy.sample
    from tiny import encode

    torch.manual_seed(0)  # some patches draw random numbers of their own
    latent = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, 16, 16))
    noise = comfy.sample.prepare_noise(latent, 0)
    conds = encode(clip, PROMPT), encode(clip, "")
    return comfy.sample.sample(
        model, noise, 2, 3.0, "euler", "simple", *conds, latent, seed=0, disable_pbar=True
    )


@pytest.mark.parametrize(
    "patch",
    [
        lora,
        foreign,
        perturbed,
        self_attention_guidance,
        rescaled_cfg,
        hypertile,
        free_u,
        free_u_2,
        deep_shrink,
        other_attention,
    ],
)
def test_the_person_and_the_patch_both_show_in_either_order(shipped: Any, patch: Any) -> None:
    from tiny import carries, same

    subjected, clip = applied(shipped, shipped.model)
    after = drawn(patch(subjected), clip)
    assert bool(after.isfinite().all())
    assert same(drawn(applied(shipped, patch(shipped.model))[0], clip), after)
    assert carries(after, drawn(patch(shipped.model), shipped.clip), threshold=0.02)  # the person
    assert carries(after, shipped.plain, threshold=0.001)  # the patch
