"""Who is drawn: the identities of people and pets, and the words that describe them.

An identity is a frozen value: one index per attribute. Identities are split once into train and held-out by a
hash of their value, so that no program can evaluate on a subject that another one trained on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, TypeVar

import numpy as np

Split = Literal["train", "heldout"]

HELDOUT_SHARE = 10
"""One identity in ten is held out of every training stage."""


@dataclass(frozen=True)
class Person:
    """A drawn person. Each field is an index into `VALUES[field]`."""

    sex: int
    age: int
    face: int
    skin: int
    hair: int
    hair_color: int
    eyes: int
    glasses: int
    beard: int
    mark: int

    VALUES: ClassVar[dict[str, tuple[str, ...]]] = {
        "sex": ("female", "male"),
        "age": ("adult", "child"),
        "face": ("round", "square", "long"),
        "skin": ("pale", "peach", "tan", "olive", "brown", "dark"),
        "hair": ("bald", "short", "spiky", "curly", "long", "bob", "bun", "pigtails"),
        "hair_color": ("black", "brown", "blond", "red", "white", "blue", "pink", "green"),
        "eyes": ("brown", "blue", "green", "violet", "amber"),
        "glasses": ("none", "black", "gold", "red"),
        "beard": ("none", "moustache", "goatee", "full"),
        "mark": ("none", "freckles", "mole", "scar", "blush"),
    }
    WORD: ClassVar[str] = "person"
    NOUNS: ClassVar[tuple[str, ...]] = ("person", "man", "woman", "child", "girl", "boy")

    def canonical(self) -> Person:
        """The same person with attributes that cannot be seen set to 0.

        Only men grow a beard, and only a man's brows show the colour of hair that is not there.
        """
        person = self if (self.sex == 1 and self.age == 0) else replace(self, beard=0)
        return replace(person, hair_color=0) if (self.sex == 0 and self.value("hair") == "bald") else person

    @property
    def nouns(self) -> tuple[str, ...]:
        """The words that fit this person, the most specific first; `person` fits everybody."""
        specific = (("woman",), ("girl", "child")), (("man",), ("boy", "child"))
        return specific[self.sex][self.age] + (self.WORD,)

    def description(self) -> list[str]:
        """Phrases that stand before the noun and together fix the identity."""
        value = self.value
        phrases = [("young " if self.age else "") + value("sex"), f"{value('skin')} skin"]
        style = value("hair")
        phrases.append(
            f"{value('hair_color')} {style} hair" if style != "bald" else f"bald {value('hair_color')} brows"
        )
        phrases.append(f"{value('eyes')} eyes")
        if self.glasses:
            phrases.append(f"{value('glasses')} glasses")
        if self.beard:
            phrases.append({1: "moustache", 2: "goatee", 3: "full beard"}[self.beard])
        if self.mark:
            phrases.append(value("mark"))
        phrases.append(f"{value('face')} face")
        return phrases

    def value(self, name: str) -> str:
        return self.VALUES[name][getattr(self, name)]


@dataclass(frozen=True)
class Pet:
    """A drawn cat or dog. Each field is an index into `VALUES[field]`."""

    species: int
    face: int
    ears: int
    fur: int
    pattern: int
    second: int
    coat: int
    eyes: int
    nose: int

    VALUES: ClassVar[dict[str, tuple[str, ...]]] = {
        "species": ("cat", "dog"),
        "face": ("round", "wide", "narrow"),
        "ears": ("pointed", "round", "floppy", "tufted"),
        "fur": ("black", "grey", "white", "brown", "ginger", "cream", "blue", "golden"),
        "pattern": ("solid", "striped", "spotted", "patched", "masked", "blazed"),
        "second": ("black", "white", "brown", "ginger", "grey"),
        "coat": ("smooth", "fluffy"),
        "eyes": ("brown", "blue", "green", "violet", "amber"),
        "nose": ("black", "pink", "brown"),
    }
    WORD: ClassVar[str] = "pet"
    NOUNS: ClassVar[tuple[str, ...]] = ("pet", "cat", "dog")

    def canonical(self) -> Pet:
        """The same pet with attributes that cannot be seen set to 0: a solid coat has no second colour, and
        a second colour equal to the fur would make the pattern invisible."""
        if self.pattern == 0:
            return replace(self, second=0)
        if self.value("second") == self.value("fur"):
            return replace(self, second=(self.second + 1) % len(self.VALUES["second"]))
        return self

    @property
    def nouns(self) -> tuple[str, ...]:
        """The words that fit this pet, the most specific first; `pet` fits every pet."""
        return (self.value("species"), self.WORD)

    def description(self) -> list[str]:
        """Phrases that stand before the noun and together fix the identity."""
        value = self.value
        phrases = [f"{value('coat')} {value('fur')} fur"]
        if self.pattern:
            phrases.append(f"{value('second')} {value('pattern')} coat")
        phrases += [
            f"{value('ears')} ears",
            f"{value('eyes')} eyes",
            f"{value('nose')} nose",
            f"{value('face')} face",
        ]
        if self.value("species") == "dog":
            phrases.append("canine")
        else:
            phrases.append("feline")
        return phrases

    def value(self, name: str) -> str:
        return self.VALUES[name][getattr(self, name)]


Identity = Person | Pet
AnyIdentity = TypeVar("AnyIdentity", Person, Pet)

KINDS: dict[str, type[Person] | type[Pet]] = {Person.WORD: Person, Pet.WORD: Pet}
"""Subject words of the small world, each with what it means there."""


def attributes(kind: type[Person] | type[Pet]) -> dict[str, int]:
    """Attribute name → number of values, in the order of the fields."""
    return {field.name: len(kind.VALUES[field.name]) for field in fields(kind)}


def values_of(identity: Identity) -> list[int]:
    """The value of each attribute, in the order of `attributes`."""
    return [getattr(identity, name) for name in attributes(type(identity))]


def count(kind: type[Person] | type[Pet]) -> int:
    """How many distinguishable identities there are."""
    if kind is Person:
        people = Person.VALUES
        beards = 1 + len(people["beard"])  # a boy has none, a man any
        styles, colors = len(people["hair"]), len(people["hair_color"])
        hair = {"female": 2 * ((styles - 1) * colors + 1), "male": beards * styles * colors}
        shared = ("face", "skin", "eyes", "glasses", "mark")
        return sum(hair.values()) * int(np.prod([len(people[name]) for name in shared]))
    values = Pet.VALUES
    patterned = (len(values["pattern"]) - 1) * sum(
        len([s for s in values["second"] if s != fur]) for fur in values["fur"]
    )
    rest = int(
        np.prod([n for name, n in attributes(kind).items() if name not in ("fur", "pattern", "second")])
    )
    return rest * (patterned + len(values["fur"]))


def split_of(identity: Identity) -> Split:
    """Whether an identity belongs to training or is held out: a fixed function of its value."""
    text = type(identity).__name__ + ",".join(str(getattr(identity, f.name)) for f in fields(identity))
    return "heldout" if hashlib.sha256(text.encode()).digest()[0] % HELDOUT_SHARE == 0 else "train"


def sample(kind: type[AnyIdentity], rng: np.random.Generator, split: Split | None = None) -> AnyIdentity:
    """A random identity of `kind`, from one split or (None) from both."""
    while True:
        drawn = {name: int(rng.integers(n)) for name, n in attributes(kind).items()}
        for rare in ("glasses", "mark", "beard"):  # many people have none, as in a street
            if rare in drawn and rng.random() < 0.4:
                drawn[rare] = 0
        identity = kind(**drawn).canonical()
        if split is None or split_of(identity) == split:
            return identity


def near_twins(identity: AnyIdentity, rng: np.random.Generator, number: int) -> list[AnyIdentity]:
    """`number` different identities that differ from `identity` in exactly one visible attribute."""
    candidates: list[AnyIdentity] = []
    for name, n in attributes(type(identity)).items():
        for index in range(n):
            twin = replace(identity, **{name: index})
            if twin == twin.canonical() and twin != identity:
                candidates.append(twin)
    order = rng.permutation(len(candidates))[:number]
    return [candidates[i] for i in order]
