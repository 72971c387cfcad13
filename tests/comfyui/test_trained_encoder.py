"""An encoder that training has just written: ComfyUI loads it, says what it is, and draws with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_prepare import nodes, run  # noqa: F401  fixtures

from nested_attention.checkpoint import load_subject_encoder, save_subject_encoder

TEXT = "a photo of a person in a forest"


@pytest.fixture
def folder(nodes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """ComfyUI's folder of encoders."""
    import folder_paths

    extensions = folder_paths.supported_pt_extensions
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "nested_attention", ([str(tmp_path)], extensions)
    )
    return tmp_path


def test_a_checkpoint_of_training_draws(
    nodes: dict[str, Any],  # noqa: F811
    folder: Path,
    world_on_disk: Path,
    prepared: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from small_training import training
    from test_small_world_composed import sampled
    from tiny import carries, encode

    from nested_attention.training.run import train

    output = tmp_path_factory.mktemp("run")
    with torch.inference_mode(False), torch.enable_grad():  # ComfyUI's nodes run without
        train(training(world_on_disk, prepared, output, steps=2), say=lambda line: None)
    checkpoint = output / "phase-1" / "step-00000002" / "encoder.safetensors"
    (folder / "mine.safetensors").write_bytes(checkpoint.read_bytes())
    loaded = run(nodes["LoadEncoder"], encoder_name="mine.safetensors")
    assert loaded.ui["nested_attention_state"][0] == [
        "word: person (people)",
        "licence: CC0 (drawn here)",
        f"{world_on_disk.name}; reads last_hidden_state of {world_on_disk.name}'s image encoder",
        "α 2, norm inner, 8 tokens; 8 pictures seen at 32 px",
    ]
    assert loaded.ui["nested_attention_origin"][0] == [
        {"file": "mine.safetensors", "licence": "CC0", "source": "drawn here"}
    ]
    with torch.inference_mode():
        model, clip, _, vision, person, *_ = run(nodes["DemoWorld"], person=7, pet=3).args
    encoder = loaded.args[0]
    (subject,) = run(nodes["EncodeSubject"], encoder=encoder, clip_vision=vision, image=person).args
    ours, mine = run(nodes["ApplySubject"], model=model, clip=clip, encoder=encoder, subject=subject).args
    plain = sampled(model, encode(clip, TEXT), encode(clip, ""))
    drawn = sampled(ours, encode(mine, TEXT), encode(mine, ""))
    assert carries(drawn, plain, threshold=0.02), "it is attached, and changes the picture"


def test_what_is_known_of_a_file_that_says_nothing(nodes: dict[str, Any], folder: Path) -> None:  # noqa: F811
    bundled = run(nodes["LoadEncoder"], encoder_name="avatars/person_encoder.safetensors").ui
    assert "licence: Apache-2.0" in bundled["nested_attention_state"][0]
    source = Path(__file__).resolve().parents[2] / "weights" / "avatars" / "pet_encoder.safetensors"
    save_subject_encoder(load_subject_encoder(source), folder / "nested_attention_person.safetensors")
    known = run(nodes["LoadEncoder"], encoder_name="nested_attention_person.safetensors").ui
    ((origin,),) = known["nested_attention_origin"]
    assert "NC" in origin["licence"] and origin["source"].startswith("https://huggingface.co/")
