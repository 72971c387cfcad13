"""CLIP, DINO and an aesthetic predictor as judges: the user's own weights, through transformers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

from ..errors import NestedAttentionError
from ..hosts.diffusers.parts import load_part
from ..pictures.files import open_picture
from ..storage.tensors import read_tensors
from ..training.frozen import default_device
from .metrics import picture_similarity
from .samples import Person, Sample
from .scorers import Measure, Scores

CLIP_T = Measure("clip_t", "CLIP-T", "cosine of the picture's and the prompt's descriptors")
CLIP_I = Measure("clip_i", "CLIP-I, to the references", "DreamBooth: mean cosine with the references")
CLIP_I_TRUTH = Measure("clip_i_truth", "CLIP-I, to the truth", "MultiID-Bench: cosine with the true picture")
DINO = Measure("dino", "DINO", "DreamBooth: mean cosine of class tokens with the references")
AESTHETIC = Measure("aesthetic", "aesthetic", "LAION's predictor on CLIP's descriptor, about 1 to 10")

SAME_MODEL = 0.999
"""Cosine of two patch embeddings from which they are taken for one vision model's, fine-tuned or rounded."""


class _Seeing:
    """A model of transformers with its picture processor. Each file is described once."""

    def __init__(self, kind: Any, where: str) -> None:
        self.where = str(where)
        self.model = load_part(kind, self.where).eval().requires_grad_(False).to(default_device())
        self.processor = load_part(AutoImageProcessor, self.where)
        self._seen: dict[Path, Tensor] = {}
        told = json.dumps(self.model.config.to_dict(), sort_keys=True, default=str)
        self.state = hashlib.sha256((told + _digest(self.model)).encode()).hexdigest()

    def describe(self, path: Path) -> Tensor:
        """(width,)"""
        if path not in self._seen:
            pixels = self.processor(images=open_picture(path), return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                self._seen[path] = self._descriptor(pixels.to(self.model.device))[0].float().cpu()
        return self._seen[path]

    def _descriptor(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError

    def references(self, people: Iterable[Person]) -> Tensor:
        return torch.stack([self.describe(path) for person in people for path in person.references])


class ClipScorer(_Seeing):
    """A CLIP model. vision: the encoder's own vision model, if known: itself, it is no independent judge."""

    key = "clip"

    def __init__(self, where: str, vision: nn.Module | None = None) -> None:
        super().__init__(CLIPModel, where)
        self.tokenizer = load_part(AutoTokenizer, self.where)
        self.measures = (CLIP_T, CLIP_I, CLIP_I_TRUTH)
        self.title = f"CLIP ({Path(self.where).name})"
        self.independent = vision is None or not same_vision(self.model, vision)

    def __call__(self, sample: Sample) -> Scores:
        picture = self.describe(sample.picture)
        text = None if not sample.prompt else self._text(sample.prompt)
        truth = None if sample.truth is None else self.describe(sample.truth)
        return {
            "clip_t": None if text is None else picture_similarity(picture, text[None]),
            "clip_i": picture_similarity(picture, self.references(sample.people)),
            "clip_i_truth": None if truth is None else picture_similarity(picture, truth[None]),
        }

    def _descriptor(self, pixels: Tensor) -> Tensor:
        return _pooled(self.model.get_image_features(pixel_values=pixels))

    @torch.no_grad()
    def _text(self, prompt: str) -> Tensor:
        tokens = self.tokenizer([prompt], padding=True, truncation=True, max_length=77, return_tensors="pt")
        return _pooled(self.model.get_text_features(**tokens.to(self.model.device)))[0].float().cpu()


class DinoScorer(_Seeing):
    """A DINO or DINOv2 model: the class token of its last layer."""

    key, independent, measures = "dino", True, (DINO,)

    def __init__(self, where: str) -> None:
        super().__init__(AutoModel, where)
        self.title = f"DINO ({Path(self.where).name})"

    def __call__(self, sample: Sample) -> Scores:
        return {"dino": picture_similarity(self.describe(sample.picture), self.references(sample.people))}

    def _descriptor(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]


class AestheticScorer:
    """LAION's aesthetic predictors: linear layers on the picture's descriptor of the CLIP they belong to.

    Reads the layers of sac+logos+ava1-l14-linearMSE.pth and sa_0_4_vit_l_14_linear.pth (for CLIP ViT-L/14).
    Raises NestedAttentionError for a file of other layers, or of another CLIP's width.
    """

    key, independent, measures = "aesthetic", True, (AESTHETIC,)

    def __init__(self, path: Path, clip: ClipScorer) -> None:
        self.clip, self.title = clip, f"aesthetic ({path.name})"
        tensors = read_tensors(path).tensors
        names = sorted((name for name in tensors if name.endswith("weight")), key=_number)
        self.layers = [(tensors[name], tensors.get(name[: -len("weight")] + "bias")) for name in names]
        width = int(clip.model.config.projection_dim)
        for weight, bias in self.layers:
            if (
                weight.dim() != 2
                or weight.shape[1] != width
                or bias is None
                or bias.shape != weight.shape[:1]
            ):
                raise NestedAttentionError(self._refusal(path, tensors, width))
            width = weight.shape[0]
        if not self.layers or width != 1 or 2 * len(names) != len(tensors):
            raise NestedAttentionError(self._refusal(path, tensors, width))
        self.state = hashlib.sha256(path.read_bytes()).hexdigest() + clip.state

    @staticmethod
    def _refusal(path: Path, tensors: dict[str, Tensor], width: int) -> str:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:4])
        return (
            f"the aesthetic predictor {path} holds {shapes or 'nothing'}; expected linear layers alone, from "
            f"CLIP's width to 1, each with a bias (what came before is {width} wide). LAION's "
            "sac+logos+ava1-l14-linearMSE.pth with CLIP ViT-L/14 is such a file; predictors on SigLIP are not"
        )

    def __call__(self, sample: Sample) -> Scores:
        value = functional.normalize(self.clip.describe(sample.picture), dim=-1)
        for weight, bias in self.layers:
            value = functional.linear(value, weight.float(), None if bias is None else bias.float())
        return {"aesthetic": float(value)}


def same_vision(first: nn.Module, second: nn.Module) -> bool:
    """Whether two models see with one vision tower: their patch embeddings are the same but for rounding."""
    one, other = (_patch_embedding(model) for model in (first, second))
    if one is None or other is None or one.shape != other.shape:
        return False
    return float(functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)) > SAME_MODEL


def _patch_embedding(model: nn.Module) -> Tensor | None:
    found = [value for name, value in model.state_dict().items() if name.endswith("patch_embedding.weight")]
    return found[0].float().cpu() if found else None


def _pooled(answer: Any) -> Tensor:
    """transformers 5 wraps the descriptor."""
    return answer if isinstance(answer, Tensor) else answer.pooler_output


def _digest(model: nn.Module) -> str:
    """Of the weights, by their sums: they tell files apart, and big ones are not read again."""
    sums = [(name, float(value.double().sum())) for name, value in model.state_dict().items()]
    return hashlib.sha256(repr(sums).encode()).hexdigest()


def _number(name: str) -> int:
    """Of a layer, as in `layers.2.weight`."""
    found = re.search(r"\d+", name)
    return int(found.group()) if found else 0
