"""Rows that another pack adds to a forward pass inside its attention, and who is carried in them.

Attention couple, in several packs, places prompts in the picture by running each in rows of its own: a patch
in front of every cross-attention layer repeats the queries and appends the text contexts of further prompts,
and one behind it mixes the results by masks. Those prompts come past no sampler, so their marks are lost.
They are known again by their text contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....errors import NestedAttentionError
from ..prompts.encoded import Candidates, EncodedPrompt, check_same, recognise
from ..prompts.marks import PromptMarks
from .carried import CarriedSubject

PATCH = "attn2_patch"
"""ComfyUI's patches in front of cross-attention, by which rows are added."""


def is_coupled(transformer_options: Mapping[str, Any]) -> bool:
    """Whether a pack might add rows: one has patched what goes into cross-attention."""
    return bool(transformer_options.get("patches", {}).get(PATCH))


@dataclass(frozen=True, eq=False)
class CoupledRows:
    """Who is carried in the rows of one forward pass, whatever patches have made of them.

    It is the last of the patches in front of cross-attention, changes nothing, and reads the text contexts
    where their shape is another one than that of the pass. That is done once for each shape: patches of this
    kind do the same in every layer.

    base: text contexts of the pass, (B, T, width). codes: (B, T') on the CPU, numbers as in `numbers`.
    prompts: those that may have been brought in. subjects: codes (B, T) → the subjects that are carried.
    """

    base: Tensor
    codes: Tensor
    prompts: Candidates
    numbers: Mapping[str, int]
    subjects: Callable[[Tensor], list[CarriedSubject]]
    _found: dict[tuple[int, int], list[CarriedSubject] | None] = field(default_factory=dict)

    def __call__(
        self, n: Tensor, context: Tensor, value: Tensor, extra_options: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, inner), (B, T, width), (B, T, width) → the same"""
        rows, tokens = shape = context.shape[:2]
        if shape not in self._found and shape != self.base.shape[:2]:
            codes = self._codes(context)
            self._found[rows, tokens] = None if codes is None else self.subjects(codes)
        return n, context, value

    def patched(self, transformer_options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with this as the last patch in front of cross-attention."""
        patches = transformer_options.get("patches", {})
        return {**transformer_options, "patches": {**patches, PATCH: [*patches.get(PATCH, ()), self]}}

    def carried(self, rows: int, tokens: int) -> list[CarriedSubject] | None:
        """Who is carried in a layer with so many rows and tokens; None: those of the pass, row by row."""
        return self._found.get((rows, tokens))

    def _codes(self, context: Tensor) -> Tensor | None:
        """Codes (B', T) of the rows of a changed context; None if they are the pass's, or cannot be told."""
        ours = [EncodedPrompt.of(row[None], PromptMarks(self.codes), keep_device=True) for row in self.base]
        number = {id(one): row for row, one in enumerate(ours)}
        of_pass = [[number[id(one)] for one in found] for found in recognise(context, ours)]

        def spread(codes: Tensor | None) -> Tensor:  # one for each token of the context
            codes = torch.zeros(1, 1, dtype=torch.int64) if codes is None else codes
            return codes.repeat(1, max(1, context.shape[1] // codes.shape[1]))

        if len(context) == len(self.base):  # longer or shorter contexts, in the rows of the pass
            known = all(row in found for row, found in enumerate(of_pass))
            return spread(self.codes) if known else None
        lost = set(range(len(self.base))) - {row for found in of_pass for row in found}
        if bool(self.codes[sorted(lost)].any()):
            raise NestedAttentionError(
                f"Apply Subject: another node runs {len(context)} prompts in the attention where there "
                f"are {len(self.base)}, and changes the one that carries a subject, so it cannot be told "
                "which it is. Leave it at strength 1, or place subjects by Apply Subject's region"
            )
        codes: list[Tensor] = []
        for found, other in zip(of_pass, self.prompts.recognised(context), strict=True):
            in_pass = [spread(self.codes[row][None]) for row in found]
            if of_pass.count(found) == len(found):  # as often as in the pass: they are those, in their order
                codes.append(in_pass[of_pass[: len(codes)].count(found)])
                continue
            candidates = in_pass + [spread(one.numbered(self.numbers)) for one in other]
            check_same([one.abs() for one in candidates])  # whatever the sign, which prompts it is
            codes.append(candidates[0] if candidates else spread(None))
        return torch.cat(codes)
