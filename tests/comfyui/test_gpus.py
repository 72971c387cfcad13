"""Copies of a MODEL for another GPU, which newer versions of ComfyUI make: each has the subjects on its own.

The second GPU is the CPU under another name. ComfyUI copies MODELs for it, loads them by themselves and runs
them in a thread of its own. Only tensors say that they are on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
import torch
from torch import Tensor

FIRST, SECOND = torch.device("cpu"), torch.device("cpu", 1)
KEY = "nested_attention"
PROMPT = "a photo of <alice:person> and <bob:man>"


def multigpu(module: str) -> Any:
    return pytest.importorskip(module, reason="this ComfyUI runs a MODEL on one GPU")


def split(model: Any) -> Any:
    """MultiGPU CFG Split."""
    create = multigpu("comfy.multigpu").create_multigpu_deepclones
    import comfy.model_management

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(comfy.model_management, "get_all_torch_devices", lambda *_, **__: [FIRST, SECOND])
        return create(model, 2, reuse_loaded=True)


def on_second(model: Any) -> Any:
    """Select Model Device. What it calls for any GPU, as the CPU is no GPU to it."""
    retarget = multigpu("comfy_extras.nodes_multigpu")._retarget_patcher
    return retarget(model.clone(), SECOND, model.offload_device)


def loadable(world: Any) -> Any:
    """The world's MODEL as a loader gives it: it says how it is made again, and no copy of it is loaded."""
    from tiny import make_model

    model = world.model.clone()
    model.cached_patcher_init = (make_model, ())
    model.clone_base_uuid = uuid4()
    return model


def both(world: Any, model: Any, *, between: Any = lambda model: model, turned: bool = False) -> Any:
    """Apply Subject for Alice and for Bob. between: what is done to the MODEL in between."""
    two = [{"subject": world.alice, "name": "alice"}, {"subject": world.bob, "name": "bob"}]
    first, second = reversed(two) if turned else two
    model, clip = world.apply(model, world.clip, **first)
    return world.apply(between(model), clip, **second)


def drawn(model: Any, clip: Any) -> Tensor:
    """With a prompt for each GPU, of which the second carries the subjects."""
    from tiny import encode, sample

    positive = encode(clip, "a house") + encode(clip, PROMPT)
    return sample(model, positive, encode(clip, "bad"), cfg=1.0)


def personalised(world: Any, way: str, move: Callable[[Any], Any]) -> tuple[Any, Any]:
    """With both subjects, and moved before them, between them or after them."""
    model, clip = both(
        world,
        move(loadable(world)) if way == "before" else loadable(world),
        between=move if way == "between" else lambda model: model,
    )
    return move(model) if way == "after" else model, clip


def beside(model: Any) -> list[Any]:
    return list(model.get_additional_models_with_key(KEY))


def copy_in(model: Any) -> Any:
    (copy,) = model.get_additional_models_with_key("multigpu")
    return copy


@pytest.mark.parametrize("way", ["before", "between", "after"])
def test_a_model_that_is_split_between_gpus_draws_the_same(world: Any, way: str) -> None:
    plain = drawn(*both(world, world.model))
    model, clip = personalised(world, way, split)
    torch.testing.assert_close(drawn(model, clip), plain, rtol=1e-3, atol=1e-3)
    copies = beside(copy_in(model))
    assert [one.load_device for one in beside(model)] == [FIRST] * 2
    assert [one.load_device for one in copies] == [SECOND] * 2
    assert not {id(one.model) for one in copies} & {id(one.model) for one in beside(model)}


def test_a_copy_that_is_used_again_knows_who_is_who(world: Any) -> None:
    """ComfyUI takes the copy that is loaded, with the subjects in the order in which it was made."""
    loaded = loadable(world)
    turned, clip = both(world, loaded, turned=True)
    turned = split(turned)
    drawn(turned, clip)
    model, clip = both(world, loaded)
    model = split(model)
    assert copy_in(model).model is copy_in(turned).model
    torch.testing.assert_close(drawn(model, clip), drawn(*both(world, world.model)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("way", ["before", "between", "after"])
def test_a_model_that_is_moved_to_another_gpu_has_its_subjects_there(world: Any, way: str) -> None:
    plain = drawn(*both(world, world.model))
    model, clip = personalised(world, way, on_second)
    torch.testing.assert_close(drawn(model, clip), plain, rtol=1e-3, atol=1e-3)
    assert [one.load_device for one in beside(model)] == [SECOND] * 2


@pytest.mark.usefixtures("either_memory")
def test_a_copy_has_nothing_of_how_the_first_is_loaded(world: Any) -> None:
    """Of a loaded layer that may be a place on the first GPU, which the copy would take for its own."""
    model, _ = world.apply(world.model, world.clip)
    for patcher in (*beside(model), world.person.patcher):
        layer = next(m for m in patcher.model.modules() if hasattr(m, "comfy_cast_weights"))
        with pytest.MonkeyPatch.context() as patched:
            for loaded, name in ((layer, "_v"), (patcher.model, "dynamic_vbars"), (patcher.model, "device")):
                patched.setattr(loaded, name, object(), raising=False)
            make, arguments = patcher.cached_patcher_init
            copy = make(*arguments).model
            assert not any(hasattr(one, "_v") for one in copy.modules())
            assert copy.device != patcher.model.device
            assert getattr(copy, "dynamic_vbars", None) is not getattr(patcher.model, "dynamic_vbars", 0)
        theirs = copy.state_dict()
        assert all(x.data_ptr() != theirs[name].data_ptr() for name, x in patcher.model.state_dict().items())


def test_what_a_copy_does_is_not_taken_for_the_firsts(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache keeps what is loaded and lets go of what is unloaded; a copy has a life of its own."""
    from tiny import make_subject

    from nested_attention.hosts.comfy.encoding import memory

    cache = memory._Cache()
    monkeypatch.setattr(memory, "_cache", cache)
    model, _ = world.apply(world.model, world.clip, make_subject(world.person, seed=400))
    (values,) = beside(model)
    make, arguments = values.cached_patcher_init
    copy = values.clone()
    copy.model = make(*arguments).model  # as ModelPatcher.deepclone_multigpu does
    with torch.inference_mode(False):
        copy.load(FIRST)
        assert not cache._kept
        values.load(FIRST)
        assert list(cache._kept.values()) == [values]
        copy.detach()
        assert list(cache._kept.values()) == [values]
        values.detach()
        assert not cache._kept
