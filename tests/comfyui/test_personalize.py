"""Person or Pet in Picture: what the three nodes do one by one, in one, from photographs of any size."""

from __future__ import annotations

import gc
import shutil
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from skimage import data
from test_notices import Editor, editor  # noqa: F401  a fixture
from test_prepare import astronaut, cat, nodes, run, temporary  # noqa: F401  fixtures
from test_small_world_composed import sampled
from torch import Tensor

PROMPT = "a photo of a person on the left and a pet on the right in a forest"


@pytest.fixture(scope="module")
def small(nodes: dict[str, Any]) -> SimpleNamespace:  # noqa: F811
    """The small world's MODEL and CLIP, and reference pictures of held-out subjects."""
    with torch.inference_mode():
        model, clip, vae, vision, person, pet = run(nodes["DemoWorld"], person=7, pet=3).args[:6]
        other = run(nodes["DemoWorld"], person=10, pet=5).args[4]
    return SimpleNamespace(
        model=model, clip=clip, vae=vae, vision=vision, person=person, pet=pet, other=other
    )


def drawn(model: Any, clip: Any, text: str = PROMPT) -> Tensor:
    from tiny import encode

    wide = " and " in text  # two figures
    return sampled(model, encode(clip, text), encode(clip, ""), size=(16, 24 if wide else 16))


def by_hand(
    nodes: dict[str, Any],  # noqa: F811
    small: SimpleNamespace,
    kind: str,
    model: Any,
    clip: Any,
) -> tuple[Any, ...]:
    encoder, _ = run(nodes["LoadEncoder"], encoder_name=f"avatars/{kind}_encoder.safetensors").args
    picture = getattr(small, kind)
    (subject,) = run(nodes["EncodeSubject"], encoder=encoder, clip_vision=small.vision, image=picture).args
    return tuple(run(nodes["ApplySubject"], model=model, clip=clip, encoder=encoder, subject=subject).args)


def personalized(nodes: dict[str, Any], *given: Any, **more: Any) -> Any:  # noqa: F811
    model, clip, picture = given
    return run(nodes["Personalize"], model=model, clip=clip, image=picture, **more)


def test_it_does_what_three_nodes_do(nodes: dict[str, Any], small: SimpleNamespace) -> None:  # noqa: F811
    from tiny import carries, same

    text = "a photo of a person in a forest"
    result = personalized(nodes, small.model, small.clip, small.person)
    model, clip, subject, taken = result.args
    expected = drawn(*by_hand(nodes, small, "person", small.model, small.clip), text)
    assert same(drawn(model, clip, text), expected)
    assert carries(expected, drawn(small.model, small.clip, text), threshold=0.02)
    assert subject.images == 1 and torch.equal(taken, small.person)
    assert [*result.ui["nested_attention_state"][0]] == [
        "1 picture: used as it is",
        "word: person (the encoder's)",
        "encoder: person_encoder.safetensors · 7 of 7 layers",
    ]
    assert len(result.ui["images"]) == 1


def test_a_person_and_a_pet_chain_in_either_order_and_branch(
    nodes: dict[str, Any],  # noqa: F811
    small: SimpleNamespace,
) -> None:
    from tiny import carries, same

    alone = personalized(nodes, small.model, small.clip, small.person).args
    before = drawn(*alone[:2])
    pairs = []
    for kinds in (("person", "pet"), ("pet", "person")):
        model, clip = small.model, small.clip
        for kind in kinds:
            model, clip, *_ = personalized(nodes, model, clip, getattr(small, kind), preset=kind).args
        pairs.append(drawn(model, clip))
        assert same(drawn(model, clip), pairs[-1])  # queued again
    assert not carries(pairs[0], pairs[1], threshold=1e-4)
    assert carries(pairs[0], before, threshold=0.02)
    on_the_first = personalized(nodes, *alone[:2], small.pet, preset="pet").args
    assert not carries(drawn(*on_the_first[:2]), pairs[0], threshold=1e-4)
    assert same(drawn(*alone[:2]), before)  # a branch of it is none the wiser
    assert same(drawn(small.model, small.clip), drawn(small.model, small.clip))
    with pytest.raises(ValueError, match="Person or Pet in Picture: .*person"):
        personalized(nodes, *alone[:2], small.other)
    named = personalized(nodes, *alone[:2], small.other, name="bob")
    assert named.ui["nested_attention_state"][0][1] == (
        "word: person (the encoder's), in the prompt <bob>, after <person>"
    )


def test_two_subjects_in_a_picture_of_one_figure_are_warned_of(
    nodes: dict[str, Any],  # noqa: F811
    small: SimpleNamespace,
    editor: Editor,  # noqa: F811
) -> None:
    from tiny import encode

    one = personalized(nodes, small.model, small.clip, small.person).args[:2]
    model, clip = personalized(nodes, *one, small.pet, preset="pet").args[:2]
    plain = encode(small.clip, "")
    for text, width, told in (
        ("a person and a pet", 16, True),
        ("a person and a pet", 16, True),  # queued again
        ("a person and a pet", 24, False),
    ):
        editor.texts.clear()
        with editor.running("5", run=f"{len(editor.toasts)}"):
            sampled(model, encode(clip, text), plain, size=(16, width), steps=1)
        assert [node for node, _ in editor.texts] == ["5"] * told
        assert not told or "Set figures of Demo World to 2" in editor.texts[0][1]
    alone = encode(clip, "a person"), encode(clip, "a pet")  # of two prompts, each has its own
    with editor.running("5", run="two prompts"):
        sampled(model, [*alone[0], *alone[1]], plain, steps=1)
    assert not editor.texts


def test_pictures_of_any_size_and_number_are_of_one_subject(
    nodes: dict[str, Any],  # noqa: F811
    small: SimpleNamespace,
) -> None:
    large = torch.nn.functional.interpolate(small.person.movedim(-1, 1), (200, 320)).movedim(1, -1)
    batch = torch.cat([small.person, small.person.flip(2)])
    grey = small.person.mean(-1, keepdim=True)
    result = personalized(nodes, small.model, small.clip, batch, image_2=large, image_4=grey)
    assert result.args[2].images == 4
    assert result.args[3].shape == (4, 512, 512, 3)
    assert result.ui["nested_attention_state"][0][0] == "4 pictures: " + "; ".join(["used as it is"] * 4)
    # Those of one size are left as they are.
    assert torch.equal(personalized(nodes, small.model, small.clip, batch).args[3], batch)


def test_a_photograph_shows_the_face_that_was_taken_and_a_drawing_world_says_it_cannot(
    nodes: dict[str, Any],  # noqa: F811
    small: SimpleNamespace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = personalized(nodes, small.model, small.clip, astronaut())
    face = run(nodes["AlignFace"], image=astronaut()).args[0]
    assert torch.equal(result.args[3], face)
    assert result.ui["nested_attention_state"][0][0] == "1 picture: face found"
    (said,) = [r.getMessage() for r in caplog.records if r.name == "nested_attention"]
    assert "was trained with drawings of the small world" in said and "encoder for SDXL" in said


def test_a_drawing_world_says_that_a_photograph_is_none_of_its_pictures(
    nodes: dict[str, Any],  # noqa: F811
    small: SimpleNamespace,
    editor: Editor,  # noqa: F811
) -> None:
    """Its own pictures are drawings still when they were decoded, or enlarged."""
    encoder, _ = run(nodes["LoadEncoder"], encoder_name="avatars/pet_encoder.safetensors").args
    given = {"encoder": encoder, "clip_vision": small.vision}
    for number, photograph in enumerate((cat(), torch.from_numpy(data.coffee())[None] / 255)):
        with editor.running("2", run=str(number)):
            personalized(nodes, small.model, small.clip, photograph, preset="pet")
            run(nodes["EncodeSubject"], image=photograph, **given)
        message = "the picture shows what looks like a photograph, and pet_encoder.safetensors was trained"
        said = [text.partition(message)[0] for _, text in editor.toasts]
        assert said == ["Person or Pet in Picture: ", "Encode Subject: "]
        editor.toasts.clear()
    enlarged = torch.nn.functional.interpolate(small.pet.movedim(-1, 1), (300, 300), mode="bicubic")
    decoded = small.vae.decode(small.vae.encode(small.person))
    with editor.running("2"):
        for drawing in (small.pet, small.other, decoded, enlarged.movedim(1, -1).clamp(0, 1)):
            run(nodes["EncodeSubject"], image=drawing, **given)
            personalized(nodes, small.model, small.clip, drawing, preset="pet")
    assert not editor.toasts


def test_the_state_says_what_was_not_found(comfyui: Path, nodes: dict[str, Any]) -> None:  # noqa: F811
    from nested_attention.pictures.prepare import prepare_pictures
    from nested_attention.pictures.pyramid import face_detector

    said = sys.modules[nodes["Personalize"].__module__]._said
    prepared = prepare_pictures([astronaut()[0], cat()[0]], "auto", face_detector())
    assert said(prepared) == "2 pictures: face found; no face found, nothing to isolate: used as it is"
    prepared = prepare_pictures([cat()[0]], "auto", face_detector(), animal=True)
    assert said(prepared) == "1 picture: nothing to isolate: used as it is"


@pytest.mark.parametrize(
    ("prepare", "word", "taken"),
    [
        ("auto", "person", ("face", "isolated", "as it is")),
        ("auto", "Dog", ("as it is", "isolated", "as it is")),  # the flag behind the astronaut is a doubt
        ("none", "person", ("as it is",) * 3),
        ("isolate", "dog", ("isolated",) * 3),
    ],
)
def test_what_is_taken_of_photographs(comfyui: Path, prepare: Any, word: str, taken: tuple[str, ...]) -> None:
    from nested_attention.pictures.prepare import prepare_pictures
    from nested_attention.pictures.pyramid import face_detector
    from nested_attention.pictures.suspect import means_animal

    horse = torch.from_numpy(data.horse()).float()[..., None].expand(-1, -1, 3)
    animal = means_animal(word)
    prepared = prepare_pictures([astronaut()[0], horse, cat()[0]], prepare, face_detector(), animal=animal)
    assert prepared.taken == taken
    assert prepared.pictures.shape == (3, 512, 512, 3)
    assert len(prepared.doubts) == {"none": 0, "isolate": 2}.get(prepare, taken.count("as it is"))
    if prepare == "auto" and word == "person":
        assert prepared.doubts[0].startswith("picture 3 of 3: no face was found, and the background")


def test_a_pets_owner_is_not_taken_for_the_pet(nodes: dict[str, Any], small: SimpleNamespace) -> None:  # noqa: F811
    """Whatever the pet is called in the prompt."""
    result = personalized(nodes, small.model, small.clip, astronaut(), preset="pet", word="labrador")
    assert result.ui["nested_attention_state"][0][0] == "1 picture: used as it is"


def test_a_face_that_is_asked_for_and_not_there_is_an_error(
    nodes: dict[str, Any],  # noqa: F811
    small: SimpleNamespace,
) -> None:
    with pytest.raises(ValueError, match="^Person or Pet in Picture: picture 2 of 2 .*no face was found"):
        personalized(nodes, small.model, small.clip, astronaut(), image_2=cat(), prepare="face")
    with pytest.raises(ValueError, match="^Encode Subject: picture 1 of 1 .*no face was found"):
        encoder, _ = run(nodes["LoadEncoder"], encoder_name="avatars/person_encoder.safetensors").args
        run(nodes["EncodeSubject"], encoder=encoder, clip_vision=small.vision, image=cat(), prepare="face")


def test_encode_subject_prepares_as_it_does(nodes: dict[str, Any], small: SimpleNamespace) -> None:  # noqa: F811
    encoder, _ = run(nodes["LoadEncoder"], encoder_name="avatars/person_encoder.safetensors").args
    given = {"encoder": encoder, "clip_vision": small.vision}
    prepared = run(nodes["EncodeSubject"], image=astronaut(), prepare="auto", **given)
    face = run(nodes["AlignFace"], image=astronaut()).args[0]
    by_hand = run(nodes["EncodeSubject"], image=face, **given)
    assert torch.equal(prepared.args[0].tokens, by_hand.args[0].tokens)
    assert len(prepared.ui.as_dict()["images"]) == 1 and by_hand.ui is None


def test_likeness_is_a_choice_of_settings(nodes: dict[str, Any], small: SimpleNamespace) -> None:  # noqa: F811
    from nested_attention.hosts.comfy.sampling.chain import SubjectChain

    settings = {}
    for likeness in ("subtle", "balanced", "strong", "layout first"):
        result = personalized(nodes, small.model, small.clip, small.person, likeness=likeness, word="man")
        (applied,) = SubjectChain.of(result.args[0]).subjects
        one = applied.settings
        settings[likeness] = (one.attention_scale, one.alpha, one.start, one.blocks)
        assert one.called.word == "man" and result.ui["nested_attention_state"][0][1] == "word: man"
    assert settings == {
        "subtle": (0.6, 2.0, 0.1, "all"),
        "balanced": (1.0, 2.0, 0.0, "all"),
        "strong": (2.0, 2.0, 0.0, "all"),
        "layout first": (1.5, 2.0, 0.2, "all"),
    }
    with pytest.raises(ValueError, match="likeness is 'huge'; expected one of subtle"):
        personalized(nodes, small.model, small.clip, small.person, likeness="huge")


@pytest.fixture
def folders(comfyui: Path, nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """Empty model folders."""
    import folder_paths

    for name in ("nested_attention", "clip_vision"):
        (tmp_path / name).mkdir()
        monkeypatch.setitem(
            folder_paths.folder_names_and_paths,
            name,
            ([str(tmp_path / name)], folder_paths.supported_pt_extensions),
        )
        monkeypatch.delitem(folder_paths.filename_list_cache, name, raising=False)
    return tmp_path


def test_a_preset_takes_the_users_own_encoder_before_the_small_worlds(
    nodes: dict[str, Any],  # noqa: F811
    small: SimpleNamespace,
    folders: Path,
) -> None:
    from nested_attention.paths import SMALL_WORLD

    for kind in ("person", "pet"):
        shutil.copy(
            SMALL_WORLD / f"{kind}_encoder.safetensors",
            folders / "nested_attention" / f"my_{kind}.safetensors",
        )
    (folders / "nested_attention" / "broken.safetensors").write_bytes(b"no file of tensors")
    options = next(one for one in nodes["Personalize"].define_schema().inputs if one.id == "preset").options
    assert options[:2] == ["person", "pet"] and "my_pet.safetensors" in options
    for preset, used in (
        ("person", "my_person"),
        ("pet", "my_pet"),
        ("avatars/pet_encoder.safetensors", "pet_encoder"),
    ):
        result = personalized(nodes, small.model, small.clip, small.pet, preset=preset)
        assert result.ui["nested_attention_state"][0][2].startswith(f"encoder: {used}.safetensors")
    before = nodes["Personalize"].fingerprint_inputs(preset="pet", likeness="strong")
    assert nodes["Personalize"].fingerprint_inputs(preset="pet", likeness="subtle") == before
    (folders / "nested_attention" / "my_pet.safetensors").unlink()
    assert nodes["Personalize"].fingerprint_inputs(preset="pet", likeness="strong") != before
    (folders / "clip_vision" / "ViT-H.safetensors").write_bytes(b"one")
    before = nodes["Personalize"].fingerprint_inputs(preset="pet")
    (folders / "clip_vision" / "ViT-H.safetensors").write_bytes(b"another")
    assert nodes["Personalize"].fingerprint_inputs(preset="pet") != before
    assert nodes["Personalize"].validate_inputs(preset="person") is True
    assert "there is no subject encoder 'gone'" in nodes["Personalize"].validate_inputs(preset="gone")


def test_without_a_fitting_encoder_it_says_what_it_looked_at_and_what_to_fetch(
    nodes: dict[str, Any],  # noqa: F811
    world: Any,
    folders: Path,
) -> None:
    with pytest.raises(ValueError, match="no subject encoder for a person that fits the MODEL") as caught:
        personalized(nodes, world.model, world.clip, astronaut())
    said = str(caught.value)
    assert said.startswith("Person or Pet in Picture: ")
    assert "avatars/person_encoder.safetensors (for a person, of another model)" in said
    assert "`nested-attention download` lists" in said and "Demo World" in said


def test_an_encoder_of_another_model_is_refused_before_its_vision_model_is_looked_for(
    nodes: dict[str, Any],  # noqa: F811
    small: SimpleNamespace,
    world: Any,
    folders: Path,
) -> None:
    from nested_attention.checkpoint import save_subject_encoder

    save_subject_encoder(world.person.encoder, folders / "nested_attention" / "tiny.safetensors")
    with pytest.raises(ValueError, match="^Person or Pet in Picture: .*is the small world .7") as caught:
        personalized(nodes, small.model, small.clip, small.person, preset="tiny.safetensors")
    assert "The encoder is tiny.safetensors: set preset to person or pet" in str(caught.value)
    encoder, _ = run(nodes["LoadEncoder"], encoder_name="tiny.safetensors").args
    with pytest.raises(ValueError, match="^Encode Subject: .*Or take an encoder of the small world"):
        run(nodes["EncodeSubject"], encoder=encoder, clip_vision=small.vision, image=small.person)


def test_what_it_says_of_pictures_and_vision_model_names_it(
    nodes: dict[str, Any],  # noqa: F811
    small: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its user has no Encode Subject."""
    module = sys.modules[nodes["Personalize"].__module__]
    monkeypatch.setattr(module, "find_vision", lambda encoder: object())
    message = "^Person or Pet in Picture: the CLIP vision model object gives no last_hidden"
    with pytest.raises(ValueError, match=message):
        personalized(nodes, small.model, small.clip, small.person)


def test_an_adapter_serves_any_subject_and_one_for_faces_is_for_people(
    nodes: dict[str, Any],  # noqa: F811
    world: Any,
    folders: Path,
) -> None:
    from tiny import make_encoder

    from nested_attention.checkpoint import save_subject_encoder

    presets = sys.modules[f"{nodes['Personalize'].__module__.rpartition('.')[0]}.presets"]
    adapter = make_encoder(world.model, seed=6, injection="decoupled")
    for name in ("any", "my-Face"):
        save_subject_encoder(adapter.encoder, folders / "nested_attention" / f"{name}.safetensors")
    found = {kind: presets.find_encoder(kind, world.model) for kind in ("person", "pet")}
    assert {kind: one.source for kind, one in found.items()} == {
        "person": "my-Face.safetensors",
        "pet": "any.safetensors",
    }
    assert {kind: presets.word_of(kind, one) for kind, one in found.items()} == {"person": None, "pet": "pet"}
    save_subject_encoder(world.pet.encoder, folders / "nested_attention" / "trained.safetensors")
    assert presets.find_encoder("pet", world.model).source == "trained.safetensors"


def test_the_vision_model_is_found_by_its_width(
    nodes: dict[str, Any],  # noqa: F811
    world: Any,
    folders: Path,
) -> None:
    from safetensors.torch import save_file

    from nested_attention.checkpoint import save_subject_encoder

    save_subject_encoder(world.person.encoder, folders / "nested_attention" / "tiny.safetensors")
    for name, width in (("wide", 32), ("narrow", 24)):
        tensors = {"vision_model.embeddings.class_embedding": torch.zeros(width)}
        save_file(tensors, folders / "clip_vision" / f"{name}.safetensors")
    with pytest.raises(ValueError, match="cannot load the CLIP vision model .*narrow.safetensors|knows no"):
        personalized(nodes, world.model, world.clip, astronaut())
    (folders / "clip_vision" / "narrow.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"Of wide.safetensors in models/clip_vision none is that wide \(24\)"
    ):
        personalized(nodes, world.model, world.clip, astronaut())


def test_two_encoders_share_a_vision_model(
    nodes: dict[str, Any],  # noqa: F811
    world: Any,
    folders: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is read once, whichever asks; of another file, the one before is let go first."""
    from safetensors.torch import save_file

    presets = sys.modules[f"{nodes['Personalize'].__module__.rpartition('.')[0]}.presets"]
    loaded: list[str] = []
    monkeypatch.setattr(presets, "load_vision", lambda path, encoder: loaded.append(path.name) or object())
    held = presets.loaded()
    width, place = world.person.config.vision_dim, folders / "clip_vision"
    tensors = {"vision_model.embeddings.class_embedding": torch.zeros(width)}
    save_file(tensors, place / "one.safetensors")
    assert len({id(presets.find_vision(one)) for one in (world.person, world.pet, world.person)}) == 1
    (place / "one.safetensors").rename(place / "other.safetensors")
    presets.find_vision(world.person)
    assert loaded == ["one.safetensors", "other.safetensors"] and len(held.visions) == 1


def test_what_it_has_read_is_kept_as_long_as_comfyui_keeps_the_node(
    nodes: dict[str, Any],  # noqa: F811
    small: SimpleNamespace,
) -> None:
    """Across runs, and until *Free model and node cache* drops nodes and outputs."""
    presets = sys.modules[f"{nodes['Personalize'].__module__.rpartition('.')[0]}.presets"]
    one, other = nodes["Personalize"](), nodes["Personalize"]()
    found = presets.find_encoder("person", small.model)
    assert presets.find_encoder("person", small.model) is found
    alive = weakref.ref(found)
    del found, one
    gc.collect()
    assert presets.find_encoder("person", small.model) is alive()
    del other
    gc.collect()
    assert alive() is None


def test_it_says_whether_its_model_reaches_a_sampler(
    nodes: dict[str, Any],  # noqa: F811
    small: SimpleNamespace,
    editor: Editor,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import nodes as core

    for kind in ("Personalize", "ApplySubject"):
        outputs = SimpleNamespace(RETURN_TYPES=tuple(nodes[kind].RETURN_TYPES))
        monkeypatch.setitem(core.NODE_CLASS_MAPPINGS, f"NestedAttention{kind}", outputs)
    one = {"class_type": "NestedAttentionPersonalize", "inputs": {"model": ["1", 0], "clip": ["1", 1]}}
    two = {"class_type": "NestedAttentionPersonalize", "inputs": {"model": ["2", 0], "clip": ["2", 1]}}
    text = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["3", 1], "text": "a person and a pet"}}
    sampler = {"class_type": "KSampler", "inputs": {"model": ["3", 0], "positive": ["4", 0]}}
    graph = {"2": one, "3": two, "4": text, "5": sampler}
    for model, last in (
        (["3", 0], "MODEL reaches a sampler"),
        (["1", 0], "MODEL reaches no sampler: connect it, or the picture will not show the subject"),
    ):
        sampler["inputs"]["model"] = model
        for node in ("2", "3"):
            with editor.running(node, graph=graph):
                result = personalized(nodes, small.model, small.clip, small.person)
            assert result.ui["nested_attention_state"][0][-1] == last
    from nested_attention.hosts.comfy.graph import encoded_texts

    assert encoded_texts(graph) == ["a person and a pet"]


def test_messages_name_the_node_that_is_there(
    nodes: dict[str, Any],  # noqa: F811
    small: SimpleNamespace,
    editor: Editor,  # noqa: F811
) -> None:
    """And no input that it lacks, wherever the subject is missed later."""
    from tiny import encode

    model, clip, *_ = personalized(nodes, small.model, small.clip, small.pet, preset="pet").args
    plain = encode(small.clip, "")
    forgotten = {"4": {"class_type": "KSampler", "inputs": {"model": ["1", 0]}}}
    for sampled_by, text, by, graph in (
        (model, "a photo of a cat", clip, None),
        (model, "a pet", small.clip, None),
        (small.model, "a pet", clip, forgotten),
    ):
        with editor.running("4", graph=graph), pytest.raises(ValueError) as caught:
            sampled(sampled_by, encode(by, text), plain)
        said = str(caught.value)
        assert said.startswith("Person or Pet in Picture: ") and "Apply Subject" not in said
        assert "when missing" not in said
        assert ("set word of Person or Pet in Picture to one of these words" in said) == (text != "a pet")
    with pytest.raises(ValueError, match="^Person or Pet in Picture: two subjects are called 'pet'"):
        personalized(nodes, model, clip, small.pet, preset="pet")
    with pytest.raises(ValueError, match="^Person or Pet in Picture: the MODEL already carries"):
        personalized(nodes, model, small.clip, small.pet, preset="pet")
    with pytest.raises(ValueError, match="^Person or Pet in Picture: .*<pat>"):
        encode(clip, "a photo of <pat>")
    assert "Person or Pet in Picture to the sampler" in warned(
        small.model, encode(clip, "a pet"), plain, editor
    )


def warned(model: Any, positive: Any, negative: Any, editor: Editor) -> str:  # noqa: F811
    """By a pass that goes without its subject, beside one that does not."""
    beside = {
        "2": {"class_type": "NestedAttentionPersonalize", "inputs": {}},
        "3": {"class_type": "KSampler", "inputs": {"model": ["2", 0]}},
    }
    with editor.running("4", graph=beside):
        sampled(model, positive, negative)
    return editor.texts[-1][1]
