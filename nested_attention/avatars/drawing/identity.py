"""Who is drawn: the identities of people and pets, and the few words that a caption has for them.

An identity is a frozen value: one whole number a trait. Colours, outlines and marks have many levels, so
most of what tells two subjects apart has no word. Identities are split once into train and held-out by a
hash of their value, so that no program can evaluate on a subject that another one trained on. Held-out ones
are split once more: what is chosen by looking is chosen on the one half, and the other half is drawn for the
final figures alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import cycle, islice
from typing import ClassVar, Literal, TypeVar

import numpy as np

from . import colors
from .canvas import Color

Split = Literal["train", "heldout"]
Half = Literal["development", "sealed"]
"""The halves of the held-out identities: for every choice, and for the final figures."""

HELDOUT_SHARE = 10
"""One identity in ten is held out of every training stage."""


@dataclass(frozen=True)
class Person:
    """A drawn person. Each field is a level of `LEVELS[field]`."""

    sex: int
    age: int
    skin: int
    blush: int
    hair: int
    hair_color: int
    outline: int
    eyes: int
    eye_gap: int
    eye_height: int
    brow: int
    nose: int
    mouth: int
    width: int
    jaw: int
    ears: int
    glasses: int
    frame: int
    beard: int
    mark: int
    places: int

    LEVELS: ClassVar[dict[str, int]] = {
        "sex": 2,
        "age": 2,
        "skin": 32,
        "blush": 4,
        "hair": 8,
        "hair_color": 64,
        "outline": 4096,
        "eyes": 32,
        "eye_gap": 2,
        "eye_height": 2,
        "brow": 4,
        "nose": 4,
        "mouth": 2,
        "width": 2,
        "jaw": 4,
        "ears": 2,
        "glasses": 3,
        "frame": 8,
        "beard": 4,
        "mark": 5,
        "places": 64,
    }
    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "skin": ("skin", "blush"),
        "hair colour": ("hair_color",),
        "hair outline": ("hair", "outline"),
        "eyes": ("eyes",),
        "proportions": ("eye_gap", "eye_height", "brow", "nose", "mouth", "width", "jaw", "ears"),
        "glasses": ("glasses", "frame"),
        "marks": ("mark", "places"),
    }
    """What near-twins differ in: one group of traits."""

    NAMED: ClassVar[dict[str, tuple[str, ...]]] = {
        "sex": ("female", "male"),
        "age": ("adult", "young"),
        "hair": ("dark", "brown", "fair", "red", "grey", "bright"),
        "glasses": ("none", "glasses"),
    }
    """All that a caption can say of who a person is: less than six bits."""

    WORD: ClassVar[str] = "person"
    NOUNS: ClassVar[tuple[str, ...]] = ("person", "man", "woman", "child", "girl", "boy")
    HAIR: ClassVar[tuple[str, ...]] = (
        "bald", "short", "spiky", "curly", "long", "bob", "bun", "pigtails",
    )  # fmt: skip
    BEARD: ClassVar[tuple[str, ...]] = ("none", "moustache", "goatee", "full")
    MARK: ClassVar[tuple[str, ...]] = ("none", "freckles", "mole", "scar", "birthmark")

    def canonical(self) -> Person:
        """The same person with traits that cannot be seen set to 0."""
        person = self if (self.sex and not self.age) else replace(self, beard=0)  # only men grow a beard
        if person.glasses == 0:
            person = replace(person, frame=0)
        if person.mark == 0:
            person = replace(person, places=0)
        return replace(person, outline=0) if person.hair == 0 else person

    @property
    def nouns(self) -> tuple[str, ...]:
        """The words that fit this person, the most specific first; `person` fits everybody."""
        specific = (("woman",), ("girl", "child")), (("man",), ("boy", "child"))
        return specific[self.sex][self.age] + (self.WORD,)

    def named(self) -> tuple[int, ...]:
        """The value of each of `NAMED`."""
        return self.sex, self.age, _place(self.hair_color, (12, 24, 32, 40, 48)), int(self.glasses > 0)

    def description(self) -> list[str]:
        """What a caption says of this person, before the noun."""
        sex, age, hair, glasses = self.named()
        words = [("young " if age else "") + self.NAMED["sex"][sex], f"{self.NAMED['hair'][hair]} haired"]
        return [*words, *(["spectacled"] if glasses else [])]

    @property
    def skin_color(self) -> Color:
        color = colors.ramp(colors.SKINS, self.skin / 31)
        return colors.mix(color, (236, 110, 100), 0.05 * self.blush)

    @property
    def hair_rgb(self) -> Color:
        return _hair(self.hair_color)

    @property
    def eye_color(self) -> Color:
        return _iris(self.eyes)


@dataclass(frozen=True)
class Pet:
    """A drawn cat or dog. Each field is a level of `LEVELS[field]`."""

    species: int
    fur: int
    second: int
    pattern: int
    places: int
    coat: int
    outline: int
    ears: int
    ear_size: int
    eyes: int
    eye_gap: int
    muzzle: int
    width: int
    nose: int

    LEVELS: ClassVar[dict[str, int]] = {
        "species": 2,
        "fur": 48,
        "second": 48,
        "pattern": 6,
        "places": 4096,
        "coat": 2,
        "outline": 256,
        "ears": 4,
        "ear_size": 2,
        "eyes": 32,
        "eye_gap": 2,
        "muzzle": 2,
        "width": 3,
        "nose": 4,
    }
    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "fur": ("fur",),
        "second colour": ("second",),
        "markings": ("pattern", "places"),
        "outline": ("outline", "coat"),
        "ears": ("ears", "ear_size"),
        "eyes": ("eyes",),
        "proportions": ("eye_gap", "muzzle", "width", "nose"),
    }
    NAMED: ClassVar[dict[str, tuple[str, ...]]] = {
        "species": ("feline", "canine"),
        "fur": ("dark", "brown", "ginger", "light", "grey"),
    }
    """All that a caption can say of who a pet is: less than four bits."""

    WORD: ClassVar[str] = "pet"
    NOUNS: ClassVar[tuple[str, ...]] = ("pet", "cat", "dog")
    EARS: ClassVar[tuple[str, ...]] = ("pointed", "round", "floppy", "tufted")
    PATTERN: ClassVar[tuple[str, ...]] = ("solid", "striped", "spotted", "patched", "masked", "blazed")

    def canonical(self) -> Pet:
        """The same pet with traits that cannot be seen set to 0, and a second colour that stands out."""
        if self.pattern == 0:
            return replace(self, second=0, places=0)
        if abs(colors.luma(_fur(self.second)) - colors.luma(_fur(self.fur))) < 48:
            darker = colors.luma(_fur(self.fur)) > 128
            return replace(self, second=self.second // 8 if darker else 24 + self.second // 6)
        return self

    @property
    def nouns(self) -> tuple[str, ...]:
        """The words that fit this pet, the most specific first; `pet` fits every pet."""
        return (("cat", "dog")[self.species], self.WORD)

    def named(self) -> tuple[int, ...]:
        """The value of each of `NAMED`."""
        return self.species, _place(self.fur, (6, 14, 22, 32))

    def description(self) -> list[str]:
        """What a caption says of this pet, before the noun."""
        species, fur = self.named()
        return [self.NAMED["fur"][fur], self.NAMED["species"][species]]

    @property
    def fur_color(self) -> Color:
        return _fur(self.fur)

    @property
    def second_color(self) -> Color:
        return _fur(self.second)

    @property
    def eye_color(self) -> Color:
        return _iris(self.eyes)


Identity = Person | Pet
AnyIdentity = TypeVar("AnyIdentity", Person, Pet)

KINDS: dict[str, type[Person] | type[Pet]] = {Person.WORD: Person, Pet.WORD: Pet}
"""Subject words of the small world, each with what it means there."""


def _hair(level: int) -> Color:
    """32 natural colours from black to blond, 8 reds, 8 greys, 16 dyes."""
    if level < 32:
        return colors.ramp(colors.HAIRS, level / 31)
    if level < 40:
        return colors.ramp(((96, 30, 20), (196, 66, 26), (240, 140, 70)), (level - 32) / 7)
    if level < 48:
        return colors.ramp(colors.GREYS, (level - 40) / 7)
    return colors.tint(0.28 + (level - 48) / 22, 0.5, 0.6)  # from green over blue to pink


def _place(level: int, ends: tuple[int, ...]) -> int:
    """How many of the ranges that end before `ends` lie below a level."""
    return sum(level >= end for end in ends)


def _fur(level: int) -> Color:
    """32 warm colours from black to white, 16 greys."""
    if level < 32:
        return colors.ramp(colors.FURS, level / 31)
    return colors.ramp(colors.GREYS, (level - 32) / 15)


def _iris(level: int) -> Color:
    """From brown over amber and green to blue and violet."""
    stops = (
        (84, 44, 18),
        (150, 84, 20),
        (206, 150, 20),
        (92, 150, 30),
        (20, 150, 120),
        (40, 120, 230),
        (130, 70, 210),
    )
    return colors.ramp(stops, level / 31)


def levels(kind: type[Person] | type[Pet]) -> dict[str, int]:
    """Trait → number of its levels, in the order of the fields."""
    return {field.name: kind.LEVELS[field.name] for field in fields(kind)}


def values_of(identity: Identity) -> list[int]:
    """The level of each trait, in the order of `levels`."""
    return [getattr(identity, name) for name in levels(type(identity))]


def bits(kind: type[Person] | type[Pet]) -> float:
    """How many bits the traits hold together, those that cannot always be seen included."""
    return sum(math.log2(number) for number in levels(kind).values())


def _splits(identity: Identity) -> tuple[Split | Half, ...]:
    """Which sets an identity belongs to: a fixed function of its value."""
    text = type(identity).__name__ + ",".join(str(value) for value in values_of(identity))
    digest = hashlib.sha256(text.encode()).digest()
    if digest[0] % HELDOUT_SHARE:
        return ("train",)
    return "heldout", "sealed" if digest[1] % 2 else "development"


def split_of(identity: Identity) -> Split:
    """Whether an identity belongs to training or is held out."""
    return "train" if "train" in _splits(identity) else "heldout"


def half_of(identity: Identity) -> Half:
    """Which half of the held-out identities one belongs to. Raises ValueError for one of training."""
    splits = _splits(identity)
    if "train" in splits:
        raise ValueError(f"{identity} is an identity of training; it belongs to no half of the held-out ones")
    return "sealed" if "sealed" in splits else "development"


def sample(
    kind: type[AnyIdentity], rng: np.random.Generator, split: Split | Half | None = None
) -> AnyIdentity:
    """A random identity of `kind`, from one split, from half of the held-out ones, or (None) from all."""
    while True:
        drawn = {name: int(rng.integers(number)) for name, number in levels(kind).items()}
        for rare, share in (("glasses", 0.45), ("mark", 0.3), ("beard", 0.3)):  # as in a street
            if rare in drawn and rng.random() < share:
                drawn[rare] = 0
        if "hair" in drawn and drawn["hair"] == 0 and rng.random() < 0.6:
            drawn["hair"] = int(rng.integers(1, kind.LEVELS["hair"]))
        if "hair_color" in drawn and drawn["hair_color"] >= 48 and rng.random() < 0.5:
            drawn["hair_color"] = int(rng.integers(40))
        identity = kind(**drawn).canonical()
        if split is None or split in _splits(identity):
            return identity


def near_twins(
    identity: AnyIdentity, rng: np.random.Generator, number: int, groups: Sequence[str] | None = None
) -> list[AnyIdentity]:
    """`number` different identities that each differ from `identity` in one group of traits, by as much as
    two strangers do, and that a caption describes in the same words. groups: names of `GROUPS`; None: all."""
    return list(islice(all_near_twins(identity, rng, groups), number))


def all_near_twins(
    identity: AnyIdentity, rng: np.random.Generator, groups: Sequence[str] | None = None
) -> Iterator[AnyIdentity]:
    """`near_twins` without an end, one group of traits after the other, in a random order."""
    twins: set[AnyIdentity] = set()
    kind = type(identity)
    names = list(groups or kind.GROUPS)
    traits = cycle([kind.GROUPS[names[i]] for i in rng.permutation(len(names))])
    chosen = next(traits)
    while True:
        other = sample(kind, rng)
        twin = replace(identity, **{name: getattr(other, name) for name in chosen}).canonical()
        same = twin.description() == identity.description() and twin.nouns == identity.nouns
        if same and twin != identity and twin not in twins:
            twins.add(twin)
            yield twin
            chosen = next(traits)
        elif rng.random() < 0.05:  # a group in which this subject cannot be another
            chosen = next(traits)
