"""What is scored: pictures, who should be in them, and the words they were drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
"""How the names of pictures end."""


@dataclass(frozen=True)
class Person:
    """Somebody, or some pet, who should be in a picture.

    references: what the model was shown. truths: other pictures of the same subject, which it was not shown.
    face: False for whom face recognisers leave out.
    """

    name: str
    references: tuple[Path, ...]
    truths: tuple[Path, ...] = ()
    face: bool = True


@dataclass(frozen=True)
class Sample:
    """One picture to be scored.

    name: unique, and a file's name without its end. prompt: as a person would read it; None where nobody
    knows it. truth: a picture of all of its people together, where there is one. scale: λ, where it is known.
    text: the prompt with names for its people's words, which may be others with another encoder.
    """

    name: str
    picture: Path
    people: tuple[Person, ...]
    prompt: str | None = None
    truth: Path | None = None
    scale: float | None = None
    text: str | None = None

    @property
    def subject(self) -> str:
        """Who is in it: pictures of one subject make one observation."""
        return " + ".join(person.name for person in self.people)

    @property
    def group(self) -> str:
        """What it is averaged with."""
        parts = [] if self.scale is None else [f"λ = {self.scale:g}"]
        if len(self.people) != 1:
            parts.append(f"{len(self.people)} people")
        return ", ".join(parts) or "one subject"

    @property
    def faces(self) -> tuple[Person, ...]:
        return tuple(person for person in self.people if person.face)
