"""CLIP, DINO and aesthetic predictors as judges, on tiny random models of transformers' own layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from nested_attention.errors import NestedAttentionError
from nested_attention.evaluation.judges import load_judges
from nested_attention.evaluation.models import AestheticScorer, ClipScorer, DinoScorer, same_vision
from nested_attention.evaluation.recognisers import FaceFinder
from nested_attention.evaluation.samples import Person, Sample
from nested_attention.evaluation.settings import ScorerSettings
from nested_attention.paths import SMALL_WORLD
from nested_attention.storage.tensors import write_tensors

SIZE, WIDTH = 32, 16
VISION = CLIPVisionConfig(
    hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE,
    patch_size=8, projection_dim=WIDTH,
)  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clip")
    text = CLIPTextConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=WIDTH, bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=VISION.to_dict(), projection_dim=WIDTH)
    CLIPModel(config).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(SMALL_WORLD / "tokenizer").save_pretrained(folder)
    processor(folder)
    return str(folder)


def processor(folder: Path) -> None:
    CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = [folder / f"{name}.png" for name in ("out", "ref_1", "ref_2", "ori")]
    for path in paths:
        Image.fromarray(random.integers(0, 255, (48, 40, 3), dtype=np.uint8)).save(path)
    rex = Person("rex", tuple(paths[1:3]), face=False)
    return Sample("out", paths[0], (rex,), "a photo of a pet", truth=paths[3])


def test_clip_scores_are_cosines_of_its_own_features(clip: str, sample: Sample) -> None:
    found = ClipScorer(clip)(sample)
    model = CLIPModel.from_pretrained(clip)
    with torch.no_grad():
        pixels = CLIPImageProcessor.from_pretrained(clip)(
            [Image.open(path) for path in (sample.picture, *sample.people[0].references, sample.truth)],
            return_tensors="pt",
        ).pixel_values
        vision = model.visual_projection(model.vision_model(pixels).pooler_output)
        tokens = CLIPTokenizer.from_pretrained(clip)([sample.prompt], return_tensors="pt")
        text = model.text_projection(model.text_model(**tokens).pooler_output)
    own = functional.cosine_similarity(vision[:1], vision)
    assert found["clip_i"] == pytest.approx(float(own[1:3].mean()), abs=1e-5)
    assert found["clip_i_truth"] == pytest.approx(float(own[3]), abs=1e-5)
    expected = float(functional.cosine_similarity(vision[0], text[0], dim=0))
    assert found["clip_t"] == pytest.approx(expected, abs=1e-5)
    without = Sample(sample.name, sample.picture, sample.people)
    assert ClipScorer(clip)(without) == {"clip_t": None, "clip_i": found["clip_i"], "clip_i_truth": None}


def test_the_encoders_own_vision_model_is_not_independent(clip: str) -> None:
    whole = CLIPModel.from_pretrained(clip)
    own = CLIPVisionModelWithProjection(VISION)
    own.vision_model.load_state_dict(whole.vision_model.state_dict())
    other = CLIPVisionModelWithProjection(VISION)
    assert same_vision(whole, own) and same_vision(whole, own.half()) and not same_vision(whole, other)
    assert not ClipScorer(clip, own.float()).independent
    assert ClipScorer(clip, other).independent and ClipScorer(clip).independent
    wider = CLIPVisionConfig(**{**VISION.to_dict(), "hidden_size": 32})
    assert not same_vision(whole, CLIPVisionModelWithProjection(wider))


def test_dino_compares_class_tokens(sample: Sample, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=8
        )
    ).eval()
    model.save_pretrained(tmp_path)
    processor(tmp_path)
    found = DinoScorer(str(tmp_path))(sample)["dino"]
    pixels = CLIPImageProcessor.from_pretrained(tmp_path)(
        [Image.open(path) for path in (sample.picture, *sample.people[0].references)], return_tensors="pt"
    ).pixel_values
    with torch.no_grad():
        tokens = model(pixels).last_hidden_state[:, 0]
    assert found == pytest.approx(
        float(functional.cosine_similarity(tokens[:1], tokens[1:]).mean()), abs=1e-5
    )


def test_an_aesthetic_predictor_is_linear_layers_on_clip(clip: str, sample: Sample, tmp_path: Path) -> None:
    path, judge = tmp_path / "laion.safetensors", ClipScorer(clip)
    layers = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1)
    ).eval()
    write_tensors(path, {f"layers.{name}": value for name, value in layers.state_dict().items()}, {})
    found = AestheticScorer(path, judge)(sample)["aesthetic"]
    with torch.no_grad():
        expected = layers(functional.normalize(judge.describe(sample.picture), dim=0))
    assert found == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(
    "tensors",
    [
        {"layers.0.weight": torch.zeros(8, WIDTH + 1), "layers.0.bias": torch.zeros(8)},  # another CLIP's
        {"layers.0.weight": torch.zeros(8, WIDTH), "layers.0.bias": torch.zeros(8)},  # no single figure
        {"layers.0.weight": torch.zeros(1, WIDTH)},  # no bias
        {"norm.weight": torch.zeros(WIDTH), "norm.bias": torch.zeros(WIDTH)},
        {"embedding": torch.zeros(3)},
    ],
)
def test_another_predictor_is_refused_by_its_name(
    clip: str, tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "siglip.safetensors"
    write_tensors(path, tensors, {})
    with pytest.raises(NestedAttentionError, match=r"siglip.safetensors holds .*; expected linear layers"):
        AestheticScorer(path, ClipScorer(clip))


def test_settings_name_the_judges(clip: str, sample: Sample) -> None:
    settings = ScorerSettings(clip=clip, dino=None)
    (judge,) = load_judges(settings, [sample], FaceFinder(lambda _: []))  # a pet: no recogniser
    assert judge.key == "clip" and judge.title.startswith("CLIP (")
    with pytest.raises(NestedAttentionError, match="CLIPModel cannot be loaded from .*gone"):
        load_judges(ScorerSettings(clip=str(Path(clip) / "gone")), [sample], FaceFinder(lambda _: []))
    with pytest.raises(NestedAttentionError, match="aesthetic is .* and clip is missing"):
        ScorerSettings(aesthetic=Path("laion.safetensors"))
