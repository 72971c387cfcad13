"""Bad input: each message names the node, what was found, what was expected and what to do."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from nested_attention.demo.server import ComfyServer


def refused(world: Any, *texts: str, message: str, **settings: Any) -> None:
    """Sampling with the first text as positive prompt stops with a message."""
    from tiny import encode, sample

    from nested_attention.errors import NestedAttentionError

    model, clip = world.apply(world.model, world.clip, **settings)
    with pytest.raises(NestedAttentionError, match=message) as error:
        sample(model, sum((encode(clip, text) for text in texts), []), encode(clip, "an ugly person"))
    assert str(error.value).startswith("Apply Subject: ")


def test_a_word_in_no_prompt(world: Any) -> None:
    message = (
        "no prompt carries the subject 'person' .word 'person'.: .* it has the words a, photo, of, dog, night"
        ". Write 'person' where the subject should appear. .* set 'when missing' of Apply Subject to 'warn'"
    )
    refused(world, "a photo of a dog", "(night:1.2)", message=message)
    refused(
        world,
        "a photo of a dog",
        name="alice",
        message="subject 'alice' .word 'person'.: .*'person' or <alice>",
    )


def test_an_empty_prompt(world: Any) -> None:
    refused(world, "", message="no prompt carries the subject 'person'.*it has no words")


def test_two_subjects_on_one_occurrence(world: Any) -> None:
    from tiny import encode, sample

    from nested_attention.errors import NestedAttentionError

    model, clip = world.apply(*world.apply(world.model, world.clip, name="alice"), world.bob, name="bob")
    negative = encode(clip, "an ugly person")  # no harm in a negative prompt
    with pytest.raises(NestedAttentionError) as error:
        sample(model, encode(clip, "a person"), negative)
    for part in ("Apply Subject", "'person'", "'alice' and 'bob'", "<alice> and <bob>", "different words"):
        assert part in str(error.value)
    sample(model, encode(clip, "<alice> and <bob>"), negative)


def test_two_subjects_of_one_name(world: Any) -> None:
    from nested_attention.errors import NestedAttentionError

    model, clip = world.apply(world.model, world.clip)
    with pytest.raises(
        NestedAttentionError, match="Apply Subject: two subjects are called 'Person'.*another name"
    ):
        world.apply(model, clip, world.bob, word="Person")
    with pytest.raises(
        NestedAttentionError, match="Apply Subject: the MODEL already carries .* 'person'.*of one chain"
    ):
        world.apply(model, world.clip, world.bob)


def test_a_mistyped_placeholder(world: Any) -> None:
    from tiny import encode

    from nested_attention.errors import NestedAttentionError

    _, clip = world.apply(world.model, world.clip, name="alice")
    with pytest.raises(NestedAttentionError, match="^Apply Subject: .*<alcie>.*mean <alice>"):
        encode(clip, "<alcie> at sea")


def test_lookalikes_pass_with_one_warning(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    from tiny import encode, tokens_marked

    from nested_attention.hosts.comfy.notices import warn_once

    warn_once.cache_clear()
    _, clip = world.apply(world.model, world.clip, name="alice")
    with caplog.at_level(logging.WARNING, "nested_attention"):
        for _ in range(3):
            conditioning = encode(clip, "<lora:x:0.8> a person")
    assert len(caplog.records) == 1
    assert "<lora:x:0.8>" in caplog.text
    ids = [token for token, _ in world.clip.tokenize("<lora:x:0.8> a person")["g"][0]]
    assert tokens_marked(conditioning) == [ids.index(49407) - 1]


def test_a_forgotten_clip_wire(world: Any) -> None:
    from tiny import encode, sample

    from nested_attention.errors import NestedAttentionError

    model, _ = world.apply(world.model, world.clip)
    with pytest.raises(
        NestedAttentionError, match="encoded with the CLIP that Apply Subject puts out. Connect that"
    ):
        sample(model, encode(world.clip, "a person"), encode(world.clip, "bad"))


def test_a_forgotten_model_wire_warns_once(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    from tiny import encode, same, sample

    from nested_attention.hosts.comfy.notices import warn_once

    warn_once.cache_clear()
    _, clip = world.apply(world.model, world.clip)
    positive, negative = encode(clip, "a person"), encode(clip, "bad")
    plain = sample(world.model, encode(world.clip, "a person"), negative)
    caplog.clear()
    for _ in range(2):
        assert not (sample(world.model, positive, negative) - plain).abs().max() > 1e-3 * plain.abs().max()
    assert len([r for r in caplog.records if r.name == "nested_attention"]) == 1
    assert "Connect the MODEL output of Apply Subject" in caplog.text
    assert same(
        sample(world.model, encode(clip, "a house"), negative),
        sample(world.model, encode(world.clip, "a house"), negative),
    )


def test_a_model_wire_from_the_middle_of_the_chain_warns(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from tiny import encode, sample

    from nested_attention.hosts.comfy.notices import warn_once

    warn_once.cache_clear()
    first, clip = world.apply(world.model, world.clip)
    _, both = world.apply(first, clip, world.rex)
    sample(first, encode(both, "a person and a pet"), encode(both, "bad"))
    assert "a prompt carries 'pet', which this MODEL does not have" in caplog.text


def test_missing_may_warn_instead(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    from tiny import encode, sample

    model, clip = world.apply(world.model, world.clip, when_missing="warn")
    sample(model, encode(clip, "a house"), encode(clip, "bad"))
    assert "no prompt carries the subject 'person'" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 1.5}, "strength is 1.5; expected 0 to 1"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"attention_scale": 0.0}, "attention_scale .λ. is 0.0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"start": 0.8, "end": 0.2}, "start is 0.8 and end is 0.2"),
        ({"end": 1.2}, "start is 0.0 and end is 1.2"),
        ({"when_missing": "ignore"}, "when_missing is 'ignore'; expected 'error' or 'warn'"),
        ({"word": ""}, "word is ''; expected a word"),
        ({"word": "(person:1.2)"}, r"word is '\(person:1.2\)'.*Weights belong into the prompt"),
        ({"name": "<alice"}, "name is '<alice'"),
        ({"name": "<>"}, "name is ''; expected a word"),
        ({"name": "<alice:child>"}, "name is 'alice:child'"),
        ({"word": 5}, "word is 5; expected a word"),
        ({"name": 5}, "name is 5; expected a word"),
        ({"name": "x" * 300}, "name has 300 characters"),
    ],
)
def test_settings_out_of_range(world: Any, settings: dict[str, Any], message: str) -> None:
    from nested_attention.errors import NestedAttentionError

    with pytest.raises(NestedAttentionError, match=f"^{message}"):
        world.apply(world.model, world.clip, **settings)


DEFAULTS = {
    "attention_scale": 1.0,
    "alpha": 2.0,
    "strength": 1.0,
}


def test_a_subject_of_another_encoder(world: Any) -> None:
    from tiny import apply_with

    from nested_attention.errors import NestedAttentionError

    with pytest.raises(
        NestedAttentionError, match="Apply Subject: this subject .*was made with another encoder"
    ):
        apply_with(
            world.model, world.clip, world.pet, world.alice, word="person", when_missing="error", **DEFAULTS
        )


def test_a_model_of_another_architecture(world: Any) -> None:
    from tiny import apply_with, make_encoder, make_model, make_subject

    from nested_attention.errors import NestedAttentionError

    fewer = make_model(transformer_depth=[0, 0, 2], transformer_depth_output=[0, 0, 0, 0, 2, 2])
    wider = make_model(context_dim=32)
    for model, message in (
        (fewer, "trained for a UNet with 11 cross-attention layers .* is a UNet with 8 .*Use the base model"),
        (wider, "context width 96; the UNet has .* 32"),
        (world.clip, "the MODEL is .*; expected a UNet of SDXL's kind. Connect an SDXL checkpoint"),
    ):
        with pytest.raises(NestedAttentionError, match=message) as error:
            world.apply(model, world.clip)
        assert str(error.value).startswith("Apply Subject: ")
    with pytest.raises(NestedAttentionError, match=f"The encoder is {world.person.source}$"):
        world.apply(fewer, world.clip)
    encoder = make_encoder(fewer, seed=1)
    with pytest.raises(NestedAttentionError, match="^Apply Subject: .*with 8 cross-.* is a UNet with 11 "):
        apply_with(
            world.model, world.clip, encoder, make_subject(encoder, seed=0),
            word="person", when_missing="error", **DEFAULTS,
        )  # fmt: skip


def test_a_clip_of_another_architecture(world: Any) -> None:
    import types

    from nested_attention.errors import NestedAttentionError

    flux = types.SimpleNamespace(cond_stage_model=types.SimpleNamespace(clip_l=object()))
    with pytest.raises(NestedAttentionError, match="Apply Subject: the CLIP is .*two text models of SDXL"):
        world.apply(world.model, flux)


def prompted(text: object, **settings: object) -> dict[str, Any]:
    """The shipped workflow with another positive prompt and other settings of Apply Subject: 6 encodes the
    positive prompt, 7 the negative one, 9 samples."""
    from nested_attention.demo.draw import load_workflow

    graph = load_workflow("avatar_person")
    graph["6"]["inputs"]["text"] = text
    graph["5"]["inputs"].update(settings)
    graph["8"]["inputs"]["batch_size"] = 1
    graph["9"]["inputs"]["steps"] = 1
    return graph


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("a photo of a dog", {}, r"it has the words a, photo, of, dog. Write 'person' where"),
        ("1person, solo", {}, "set word to '1person', or put spaces around 'person'"),
        ("<alice> at the beach", {}, "'person' where .*; <alice> calls nobody unless the .* name is 'alice'"),
        ("a man", {"word": "person, man"}, "'person, man' is looked for as it stands"),
        ("a \ud800 person", {}, r"the prompt has U\+D800 as its character 3"),
    ],
)
def test_a_prompt_without_its_subject_is_what_the_editor_outlines(
    server: ComfyServer, text: str, settings: dict[str, Any], message: str
) -> None:
    """Nothing is sampled first, and it holds too where only the prompt has changed since the last run."""
    from nested_attention.errors import NestedAttentionError

    before = len(server.log.read_text())
    for _ in range(2):
        with pytest.raises(
            NestedAttentionError, match=r"stopped at CLIPTextEncode \(6\): Apply Subject: .*" + message
        ):
            server.run(prompted(text, **settings))
    assert "calls none of the subjects" not in server.log.read_text()[before:]  # which the error says


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"word": "per\udfffson"}, r"word has U\+DFFF"),
        ({"name": "\ud800"}, r"name has U\+D800"),
        ({"word": "<person>"}, "word is '<person>'"),
    ],
)
def test_names_that_are_none(server: ComfyServer, settings: dict[str, Any], message: str) -> None:
    from nested_attention.errors import NestedAttentionError

    with pytest.raises(NestedAttentionError, match="ApplySubject .5.: Apply Subject: " + message):
        server.run(prompted("a person", **settings))


def test_a_prompt_that_cannot_be_told_is_left_to_the_sampler(server: ComfyServer) -> None:
    from nested_attention.errors import NestedAttentionError

    graph = prompted(["20", 0])
    graph["20"] = {"class_type": "PrimitiveString", "inputs": {"value": "a photo of a dog"}}
    with pytest.raises(
        NestedAttentionError, match=r"stopped at KSampler \(9\): Apply Subject: no prompt carries"
    ):
        server.run(graph)
    # One prompt of several carries it, or none has to.
    graph = prompted("a house")
    graph["20"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["5", 1], "text": "a person"}}
    graph["21"] = {
        "class_type": "ConditioningCombine",
        "inputs": {"conditioning_1": ["6", 0], "conditioning_2": ["20", 0]},
    }
    graph["9"]["inputs"]["positive"] = ["21", 0]
    server.run(graph)
    server.run(prompted("a house", when_missing="warn"))
    server.run(prompted("a house", strength=0.0))
