"""The words for a picture: captions that train the base model, and prompts without what identity fixes."""

from __future__ import annotations

import hashlib

import numpy as np

from .identity import KINDS, Half, Identity, Split, sample
from .picture import STYLES, Figure, Picture
from .pose import PLACEMENTS, Pose
from .scenes import SCENES
from .wardrobe import ACCESSORIES, CLOTHES

_PLACES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}


def combination_split(picture: Picture) -> Split:
    """Whether this combination of scene, style, clothes, accessory and placement was kept from training."""
    parts = [picture.scene, picture.style]
    for figure in picture.figures:
        parts += [type(figure.identity).__name__, figure.placement, figure.clothes, figure.accessory]
    return "heldout" if hashlib.sha256(",".join(parts).encode()).digest()[0] % 5 == 0 else "train"


def sample_picture(
    rng: np.random.Generator,
    identities: tuple[Identity, ...],
    split: Split | None = "train",
) -> Picture:
    """A random picture of one or two identities, in a combination that belongs to `split` (None: any)."""
    while True:
        figures = []
        order = rng.permutation(len(identities)) if len(identities) > 1 else np.arange(1)
        for index, identity in enumerate(identities):
            together = len(identities) > 1
            placement = ("left", "right")[int(order[index])] if together else str(rng.choice(PLACEMENTS))
            pose = Pose.sample(rng, placement, together=together)
            bare = rng.random() < (0.5 if together else 0.2)
            clothes = "plain" if bare else str(rng.choice(list(CLOTHES)))
            plain = rng.random() < (0.6 if together else 0.2)
            accessory = "none" if plain else str(rng.choice(list(ACCESSORIES)))
            figures.append(Figure(identity, placement, pose, clothes, accessory))
        picture = Picture(
            tuple(figures), str(rng.choice(list(SCENES))), str(rng.choice(STYLES)), int(rng.integers(2**31))
        )
        if split is None or combination_split(picture) == split:
            return picture


def _worn(figure: Figure) -> str:
    clothes, accessory = CLOTHES[figure.clothes][0], ACCESSORIES[figure.accessory]
    words = []
    if figure.pose.expression != "calm":
        words.append(figure.pose.expression)
    if clothes:
        words.append(f"wearing {clothes}")
    if accessory:
        words.append(f"with {accessory}")
    return " ".join(words)


def caption(
    picture: Picture,
    rng: np.random.Generator,
    *,
    described: bool = False,
    words: tuple[str, ...] | None = None,
) -> str:
    """One of four phrasings of a picture.

    `described` names what the identity fixes, before the subject's word, as captions of photographs do.
    `words` gives each figure's noun; by default one that fits is drawn at random.
    """
    return caption_and_phrases(picture, rng, described=described, words=words)[0]


def caption_and_phrases(
    picture: Picture,
    rng: np.random.Generator,
    *,
    described: bool = False,
    words: tuple[str, ...] | None = None,
) -> tuple[str, list[str]]:
    """A caption, and its phrase about each figure, in their order."""
    subjects = []
    for index, figure in enumerate(picture.figures):
        nouns = figure.identity.nouns
        noun = words[index] if words else str(rng.choice([nouns[0], nouns[-1], str(rng.choice(nouns))]))
        description = figure.identity.description() if described else []
        worn = _worn(figure)
        place = _PLACES[figure.placement]
        subjects.append((" ".join([*description, noun]), worn, place))
    scene = SCENES[picture.scene][0]
    style = picture.style

    def phrase(subject: tuple[str, str, str], *, place_first: bool) -> str:
        noun, worn, place = subject
        parts = [f"a {noun}", place, worn] if place_first else [f"a {noun}", worn, place]
        return " ".join(part for part in parts if part)

    form = int(rng.integers(4))
    phrases = [phrase(s, place_first=form % 2 == 1) for s in subjects]
    text = " and ".join(phrases)
    whole = (
        f"a {style} of {text} {scene}",
        f"{text} {scene}, {style} style",
        f"{scene}, {text}, a {style}",
        f"{style} style, {text}, {scene}",
    )
    return whole[form], phrases


def without_place(text: str) -> str:
    """A caption without places: for pictures whose pose a control picture decides."""
    for place in _PLACES.values():
        text = text.replace(f" {place}", "")
    return text


def prompt(picture: Picture, rng: np.random.Generator) -> str:
    """The prompt an encoder is trained and evaluated with: `person` and `pet`, nothing that identity
    fixes."""
    return caption(picture, rng, words=subject_words(picture))


def subject_words(picture: Picture) -> tuple[str, ...]:
    """The word that an encoder's subject is attached to, for each figure."""
    return tuple(type(figure.identity).WORD for figure in picture.figures)


def sample_identities(
    rng: np.random.Generator, kinds: str, split: Split | Half | None = "train"
) -> tuple[Identity, ...]:
    """Identities for a scheme such as "person", "pet", "person+pet", "person+person"."""
    return tuple(sample(KINDS[word], rng, split) for word in kinds.split("+"))  # type: ignore[type-var]
