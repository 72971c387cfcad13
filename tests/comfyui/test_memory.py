"""Keys and values: computed once, visible to ComfyUI, bounded; and weights that may stay offloaded."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch


def values(model: Any) -> list[Any]:
    from nested_attention.hosts.comfy.sampling.chain import SubjectChain

    return [subject.values for subject in SubjectChain.of(model).subjects]


def test_changing_a_setting_projects_nothing_again(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clip = world.apply(world.model, world.clip)
    monkeypatch.setattr(type(world.person.encoder), "project_each", None)
    for settings in (
        {"word": "woman"}, {"attention_scale": 1.0}, {"alpha": None}, {"strength": 0.5}, {"name": "alice"},
        {"start": 0.2, "end": 0.7}, {"when_missing": "warn"},
    ):  # fmt: skip
        again, _ = world.apply(world.model, world.clip, **settings)
        assert values(again) == values(model)
    again, _ = world.apply(*world.apply(world.model, world.clip), world.alice, name="twin")
    assert values(again) == values(model) * 2
    assert len(again.get_nested_additional_models()) == 1


def test_off_projects_and_holds_nothing(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny import make_subject

    monkeypatch.setattr(type(world.person.encoder), "project_each", None)
    model, _ = world.apply(world.model, world.clip, make_subject(world.person, seed=77), strength=0.0)
    assert values(model) == [None]
    assert not model.get_nested_additional_models()


def test_what_is_projected(world: Any) -> None:
    model, _ = world.apply(world.model, world.clip)
    (patcher,) = values(model)
    expected = world.person.encoder.project(world.alice.tokens)
    for name, (key, value) in expected.items():
        held = patcher.model(name, torch.device("cpu"))
        assert torch.equal(held[0], key)
        assert torch.equal(held[1], value)
    assert patcher.model_size() == sum(2 * key.nbytes for key, _ in expected.values())
    assert not any(p.is_inference() or p.requires_grad for p in patcher.model.parameters())
    assert patcher in model.get_nested_additional_models()
    assert model.clone().get_nested_additional_models()[0].model is patcher.model


def test_a_clone_duplicates_no_tensor(world: Any) -> None:
    from nested_attention.hosts.comfy.sampling.chain import SubjectChain

    model, _ = world.apply(world.model, world.clip)
    assert SubjectChain.of(model.clone().clone()) is SubjectChain.of(model)


def test_the_cache_is_bounded_and_lets_go(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny import encode, make_subject, sample

    from nested_attention.hosts.comfy.encoding import memory

    def run(seed: int) -> Any:
        model, clip = world.apply(world.model, world.clip, make_subject(world.person, seed=seed))
        sample(model, encode(clip, "a person"), encode(clip, "bad"), steps=1)
        return model

    cache = memory._Cache()
    monkeypatch.setattr(memory, "_cache", cache)
    first = run(100)
    seen = weakref.ref(values(first)[0].model)
    for seed in range(memory.CACHE_ENTRIES + 1):
        run(101 + seed)
    assert len(cache._kept) == memory.CACHE_ENTRIES
    gc.collect()
    assert seen() is not None  # in use
    del first
    gc.collect()
    assert seen() is None
    monkeypatch.setattr(memory, "CACHE_BYTES", 1)
    run(200)
    assert len(cache._kept) == 1


def test_a_subject_is_kept_while_it_is_loaded_and_no_longer(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI drops a MODEL before it makes the next one; what was projected for it must outlive that."""
    import comfy.model_management
    from tiny import encode, make_subject, sample

    subject = make_subject(world.person, seed=300)

    def run(**settings: Any) -> Any:
        model, clip = world.apply(world.model, world.clip, subject, **settings)
        sample(model, encode(clip, "a person"), encode(clip, "bad"), steps=1)
        return weakref.ref(values(model)[0].model)

    first = run()
    gc.collect()
    with monkeypatch.context() as patched:
        patched.setattr(type(world.person.encoder), "project", None)
        again = run(attention_scale=1.5)
    assert again() is first() is not None
    with torch.inference_mode(False):
        comfy.model_management.unload_all_models()
    gc.collect()
    assert first() is None
    unsampled, _ = world.apply(world.model, world.clip, make_subject(world.person, seed=301))
    reference = weakref.ref(values(unsampled)[0].model)
    del unsampled
    gc.collect()
    assert reference() is None  # never loaded, so nothing speaks for keeping it


def test_the_models_dtype_is_kept(world: Any) -> None:
    from tiny import encode, make_model, sample

    model = make_model(compute_dtype=torch.bfloat16)
    applied, clip = world.apply(model, world.clip)
    assert {p.dtype for p in values(applied)[0].model.parameters()} == {torch.bfloat16}
    assert bool(sample(applied, encode(clip, "a person"), encode(clip, "bad")).isfinite().all())


def test_weights_that_stay_offloaded_give_the_same(world: Any) -> None:
    """What --lowvram does, which has no effect on a CPU: layers are told to cast at each use."""
    from tiny import encode, make_encoder, make_subject, same, sample

    def partly_loaded(patcher: Any) -> None:
        patcher.load(torch.device("cpu"), lowvram_model_memory=1)
        assert patcher.model.model_lowvram
        assert all(m.comfy_cast_weights for m in patcher.model.modules() if hasattr(m, "comfy_cast_weights"))

    handle = make_encoder(world.model, seed=1)
    expected = make_subject(handle, seed=3)
    partly_loaded(handle.patcher)
    assert same(make_subject(handle, seed=3).tokens, expected.tokens)
    projected = handle.encoder.project(expected.tokens)

    model, clip = world.apply(world.model, world.clip)
    picture = sample(model, encode(clip, "a person"), encode(clip, "bad"))
    (patcher,) = values(model)
    assert all(same(projected[name][0], patcher.model(name, torch.device("cpu"))[0]) for name in projected)
    partly_loaded(patcher)
    assert same(sample(model, encode(clip, "a person"), encode(clip, "bad")), picture)
    patcher.detach()


def test_unloading_everything_and_going_on(world: Any) -> None:
    import comfy.model_management
    from tiny import encode, same, sample

    model, clip = world.apply(world.model, world.clip)
    positive, negative = encode(clip, "a person"), encode(clip, "bad")
    picture = sample(model, positive, negative)
    loaded = {id(one.model.model) for one in comfy.model_management.current_loaded_models}
    assert id(values(model)[0].model) in loaded
    with torch.inference_mode(False):  # as ComfyUI's clean-up runs
        comfy.model_management.unload_all_models()
    assert same(sample(model, positive, negative), picture)


@pytest.mark.usefixtures("either_memory")
def test_another_copy_for_another_gpu(world: Any) -> None:
    model, _ = world.apply(world.model, world.clip)
    for patcher in (*values(model), world.person.patcher):
        make, arguments = patcher.cached_patcher_init
        copy = make(*arguments)
        assert copy.model is not patcher.model
        ours, theirs = patcher.model.state_dict(), copy.model.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_was_handed_over_is_not_kept_beside_what_is_managed(world: Any) -> None:
    """Once ComfyUI moves the managed one, they would be two copies."""
    import gc
    import weakref

    from nested_attention.encoder import SubjectEncoder
    from nested_attention.hosts.comfy import manage_encoder

    encoder = SubjectEncoder(world.person.config)
    given, handle = weakref.ref(encoder), manage_encoder(encoder, "mine")
    del encoder
    gc.collect()
    assert given() is None and handle.encoder.config == world.person.config


def test_layers_that_may_stay_offloaded_have_what_newer_versions_look_for(world: Any) -> None:
    model, _ = world.apply(world.model, world.clip)
    for patcher in (*values(model), world.person.patcher):
        layers = [m for m in patcher.model.modules() if hasattr(m, "comfy_cast_weights")]
        assert layers
        assert all(hasattr(layer, "weight") and hasattr(layer, "bias") for layer in layers)
        held = sum(p.nbytes for layer in layers for p in layer.parameters(recurse=False))
        assert held >= 0.9 * patcher.model_size()


@pytest.mark.usefixtures("either_memory")
def test_an_encoder_from_a_file(world: Any, tmp_path: Path) -> None:
    from tiny import make_subject

    from nested_attention.checkpoint import save_subject_encoder
    from nested_attention.errors import NestedAttentionError
    from nested_attention.hosts.comfy import load_encoder_for_comfy

    path = tmp_path / "person.safetensors"
    save_subject_encoder(world.person.encoder, path)
    handle = load_encoder_for_comfy(path, word="lady", norm="head")
    assert handle.source == "person.safetensors"
    assert handle.fingerprint == world.person.fingerprint
    assert (handle.config.word, handle.config.norm) == ("lady", "head")
    assert torch.allclose(make_subject(handle, seed=3).tokens, world.alice.tokens, atol=1e-2)
    with pytest.raises(NestedAttentionError, match="missing.safetensors"):
        load_encoder_for_comfy(tmp_path / "missing.safetensors")


def test_values_that_stay_offloaded_are_kept_and_given_back(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer versions hand out tensors in a buffer that is the next layer's once they are given back."""
    import comfy.ops

    model, _ = world.apply(world.model, world.clip)
    (patcher,) = values(model)
    projected = world.person.encoder.project(world.alice.tokens)
    back: list[Any] = []
    if hasattr(comfy.ops, "uncast_bias_weight"):
        monkeypatch.setattr(comfy.ops, "uncast_bias_weight", lambda layer, *_: back.append(layer))
    else:
        back = list(patcher.model.sites.values())
    elsewhere = torch.device("meta")
    for name, expected in projected.items():
        held = patcher.model(name, elsewhere)
        assert [t.device for t in held] == [elsewhere] * 2
        assert [(t.shape, t.dtype) for t in held] == [(t.shape, t.dtype) for t in expected]
    assert {p.device.type for p in patcher.model.parameters()} == {"cpu"}
    assert back == list(patcher.model.sites.values())
