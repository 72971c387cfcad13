"""What an encoder's file says of itself, beside what is needed to run it: what for, from what, under
which licence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from .encoder import SubjectEncoderConfig


@dataclass(frozen=True, kw_only=True)
class EncoderCard:
    """domain: what it was trained for, such as "people". licence: under which it is given on. source: where
    its maker offers it. base_model, vision_model: what it was trained on and with. samples: examples it has
    seen. resolution: of the last phase, in pixels a side. "" and 0: not known.
    """

    domain: str = ""
    licence: str = ""
    source: str = ""
    base_model: str = ""
    vision_model: str = ""
    samples: int = 0
    resolution: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> EncoderCard:
        """The card in a file's metadata. What is missing, unknown or of another type is left out: a card
        changes nothing about what an encoder does, and must not keep it from being loaded."""
        try:
            values = json.loads(metadata.get("card", "{}"))
        except (ValueError, RecursionError):
            values = {}
        if not isinstance(values, dict):
            values = {}
        kinds = {field.name: type(field.default) for field in fields(cls)}
        return cls(**{name: values[name] for name, kind in kinds.items() if type(values.get(name)) is kind})


def describe(config: SubjectEncoderConfig, card: EncoderCard) -> list[str]:
    """An encoder in four lines, for a person; what is not known is left out."""
    alpha = "no α" if config.alpha is None else f"α {config.alpha:g}"
    vision = f" of {card.vision_model}" if card.vision_model else ""
    seen = f"; {card.samples:,} pictures seen" if card.samples else ""
    size = f" at {card.resolution} px" if card.samples and card.resolution else ""
    return [
        f"word: {config.word}" + (f" ({card.domain})" if card.domain else ""),
        f"licence: {card.licence or 'not stated'}" + (f" ({card.source})" if card.source else ""),
        (f"{card.base_model}; " if card.base_model else "") + f"reads {config.features}{vision}",
        f"{alpha}, norm {config.norm}, {config.num_queries} tokens{seen}{size}",
    ]
