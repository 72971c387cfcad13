"""Weights that are known: where they come from, under which licence, and where they go (registry.json)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NestedAttentionError
from ..paths import REGISTRY
from ..prompt import short

HUB = "https://huggingface.co"


@dataclass(frozen=True, kw_only=True)
class KnownWeights:
    """One file of weights.

    kind: "encoder" or "vision". repo, file: on the model hub. terms: the licence's in a sentence. size: in
    words, None where it is not known. folder: its folder in ComfyUI/models. target: its name there. needs:
    names of others it does not work without. layout: what a loader takes it for.
    """

    name: str
    title: str
    kind: str
    repo: str
    file: str
    licence: str
    licence_url: str
    terms: str
    size: str | None
    folder: str
    target: str
    needs: tuple[str, ...]
    note: str
    layout: Mapping[str, Any]

    @property
    def page(self) -> str:
        """Where a person can look at the file and download it by hand."""
        return f"{HUB}/{self.repo}/blob/main/{self.file}"

    def place(self, models: Path) -> Path:
        """Its path below ComfyUI's `models`."""
        return models / self.folder / self.target

    def by_hand(self, models: Path) -> str:
        """How to get it without us, in a sentence."""
        return f"Download {self.page} (licence: {self.licence}) and save it as {self.place(models)}"


def known_weights(path: Path = REGISTRY) -> dict[str, KnownWeights]:
    """Name → weights, in the registry's order. Raises NestedAttentionError if the file is missing or
    damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = [KnownWeights(**{**entry, "needs": tuple(entry["needs"])}) for entry in content["weights"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NestedAttentionError(
            f"the list of known weights {path} cannot be read ({error}); install the pack again"
        ) from error
    return {entry.name: entry for entry in entries}


def find_weights(name: str) -> KnownWeights:
    """Raises NestedAttentionError that lists the known names if this is none of them."""
    known = known_weights()
    if name not in known:
        raise NestedAttentionError(
            f"there are no known weights called {short(name)!r}; expected one of {', '.join(known)}"
        )
    return known[name]


def weights_for(folder: str, target: str) -> KnownWeights | None:
    """The known weights that belong under a file name in one of ComfyUI's model folders."""
    return next((k for k in known_weights().values() if (k.folder, k.target) == (folder, target)), None)
