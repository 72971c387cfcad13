"""The published formulas, as pure functions of descriptors: of faces, of pictures, of texts.

A descriptor is what a model makes of a face, a picture or a text: a vector (width,). How alike two are is the
cosine between them. A face that is missing is a failure and counts as similarity 0; nothing is left out
because a detector found nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from scipy.optimize import linear_sum_assignment
from torch import Tensor

EPSILON = 1e-6
"""Angle, in radians, below which MultiID-Bench takes truth and reference for one picture."""


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """(n, width), (m, width) → the cosine of each with each, (n, m)."""
    return functional.normalize(first.double(), dim=-1) @ functional.normalize(second.double(), dim=-1).T


def match(similarity: Tensor) -> list[int | None]:
    """Who is who: similarity (faces, people) → for each person the face that is theirs, None without one.

    The assignment with the largest sum of similarities, one face a person at most (Hungarian matching, as
    MultiID-Bench and UMO have it). With fewer faces than people, somebody is missing.
    """
    found: list[int | None] = [None] * similarity.shape[1]
    for face, person in zip(*linear_sum_assignment(-similarity.numpy()), strict=True):
        found[int(person)] = int(face)
    return found


def identity_similarity(faces: Tensor, people: Tensor) -> float:
    """Mean over the people of the cosine with the face that is theirs; 0 for one who is missing.

    faces (n, width): of the generated picture. people (m, width): of the references, or of the truth
    (MultiID-Bench's Sim(Ref) and Sim(GT), which leave out pictures with another number of faces).
    """
    similarity = cosines(faces, people)
    pairs = enumerate(match(similarity))
    return sum(float(similarity[face, person]) for person, face in pairs if face is not None) / len(people)


def angle(first: Tensor, second: Tensor) -> float:
    """Between two descriptors (width,), in radians."""
    return math.acos(max(-1.0, min(1.0, float(cosines(first[None], second[None])))))


def copy_paste(generated: Tensor, truth: Tensor, reference: Tensor) -> float:
    """MultiID-Bench's copy-paste measure of one face: (θ(generated, truth) − θ(generated, reference)) /
    θ(truth, reference), of three descriptors (width,).

    1: the generated face is the reference's, copied. −1: it is as the person looks in the truth. 0 where
    truth and reference are one picture.
    """
    apart = angle(truth, reference)
    if apart < EPSILON:
        return 0.0
    return (angle(generated, truth) - angle(generated, reference)) / apart


def copy_paste_of_people(faces: Tensor, truths: Tensor, references: Tensor) -> float | None:
    """The mean of `copy_paste` over the people of the references (m, width), each with their own truth,
    (m, width) in the same order, and the face of (n, width) that is theirs by `match` with the references.

    None without a face: one that is not there copies nothing.
    """
    own = match(cosines(faces, references))
    found = [
        copy_paste(faces[face], truths[person], references[person])
        for person, face in enumerate(own)
        if face is not None
    ]
    return sum(found) / len(found) if found else None


def id_conf(similarities: Sequence[float]) -> float:
    """UMO's ID-Conf of one person: how clearly one face of the picture is theirs.

    similarities: of the person's reference with every face. min(1, (s₁ − s₂) / s₁) with the two largest; 0 if
    the largest is not above 0. A picture with fewer than two faces, which UMO leaves out, counts as 0.
    """
    if len(similarities) < 2:
        return 0.0
    first, second = sorted(similarities, reverse=True)[:2]
    return min(1.0, (first - second) / first) if first > 0 else 0.0


def id_conf_of_people(faces: Tensor, references: Tensor) -> float:
    """The mean of `id_conf` over the people (m, width) of a picture with these faces (n, width)."""
    similarity = cosines(faces, references)
    return sum(id_conf(similarity[:, person].tolist()) for person in range(len(references))) / len(references)


def picture_similarity(picture: Tensor, others: Tensor) -> float:
    """Mean cosine of a picture's descriptor (width,) with those of others (n, width): CLIP-I and DINO of
    DreamBooth (Ruiz et al., 2023), by the model that made them; CLIP-T with a text's."""
    return float(cosines(picture[None], others).mean())


def mean_descriptor(descriptors: Tensor) -> Tensor:
    """Several pictures of one person (n, width) → one descriptor (width,): the mean of their directions."""
    return functional.normalize(descriptors.double(), dim=-1).mean(dim=0).to(torch.float32)
