"""CLIP's tokenizer, from the files that ship with the small world."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from transformers import CLIPTokenizer

from ...paths import SMALL_WORLD


class _Tokens(NamedTuple):
    start: int = 49406
    end: int = 49407
    length: int = 77


TOKENS = _Tokens()


@dataclass(frozen=True)
class Tokenizer:
    """Text → ids padded with the end token to 77, as CLIP-L is fed."""

    inner: CLIPTokenizer

    def encode(self, text: str) -> list[int]:
        """One text → 77 ids."""
        return self.inner(text, padding="max_length", max_length=TOKENS.length, truncation=True).input_ids

    def encode_all(self, texts: list[str]) -> np.ndarray:
        """Texts → (n, 77) uint16."""
        out = self.inner(texts, padding="max_length", max_length=TOKENS.length, truncation=True).input_ids
        return np.asarray(out, np.uint16)


@lru_cache(maxsize=1)
def load_tokenizer() -> Tokenizer:
    """The tokenizer of both text encoders; they differ only in what follows the end token."""
    return Tokenizer(CLIPTokenizer.from_pretrained(SMALL_WORLD / "tokenizer"))
