"""Token embeddings of the words in use: the tiny text encoders know a few hundred of CLIP's 49,408 tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SIZE = 49408


class CompactEmbedding(nn.Module):
    """Looks up rows of a short table by CLIP's own ids; a token that has no row is embedded as zero.

    Stored as `rows` (n, width) and `token_ids` (n,): the state that ships, instead of 49,408 rows.
    """

    rows: Tensor
    token_ids: Tensor
    index: Tensor

    def __init__(self, token_ids: Sequence[int], rows: Tensor) -> None:
        super().__init__()
        ids = torch.as_tensor(list(token_ids), dtype=torch.long)
        if len(ids) != len(rows):
            raise ValueError(f"{len(ids)} token ids for {len(rows)} embedding rows: they must be as many")
        self.rows = nn.Parameter(rows.clone())
        self.register_buffer("token_ids", ids)
        index = torch.full((SIZE,), len(ids), dtype=torch.long)
        index[ids] = torch.arange(len(ids))
        self.register_buffer("index", index, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (…) → embeddings (…, width)."""
        padded = torch.cat([self.rows, self.rows.new_zeros(1, self.rows.shape[1])])
        return padded[self.index[ids]]

    @property
    def weight(self) -> Tensor:
        """The table that transformers asks for its dtype and device."""
        return self.rows

    def full(self) -> Tensor:
        """The complete (49408, width) table, for hosts that look tokens up in an ordinary embedding."""
        table = self.rows.new_zeros(SIZE, self.rows.shape[1])
        table[self.token_ids] = self.rows.detach()
        return table


def compact(text_encoder: nn.Module, token_ids: Sequence[int]) -> nn.Module:
    """Replace a CLIP text model's token table by the rows of `token_ids`, in place; returns the model."""
    inner: Any = getattr(text_encoder, "text_model", text_encoder)
    table = inner.embeddings.token_embedding
    if not isinstance(table, CompactEmbedding):
        rows = table.weight.detach()[torch.as_tensor(list(token_ids))]
        inner.embeddings.token_embedding = CompactEmbedding(token_ids, rows)
    return text_encoder


def used_tokens(*ids: np.ndarray) -> list[int]:
    """The tokens that occur in arrays of ids, with padding, start and end, ascending."""
    return sorted(set(np.unique(np.concatenate([x.reshape(-1) for x in ids])).tolist()) | {0, 49406, 49407})
