"""Which rows of a batch carry which subjects, and at which tokens: read from the masks once a forward pass.

All layers of a UNet see the same prompts. What their masks say, and which rows are views of the batch, is
therefore found once, and the layers only compute: they read no tensor on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..attention import LOG_ZERO, BoundSubject, nested_value, onto


class Marked(Protocol):
    """What is read of a `BoundSubject`, or of what becomes one in each layer."""

    @property
    def mask(self) -> Tensor: ...  # (B, T) bool

    @property
    def word(self) -> Tensor | None: ...  # (B, T) bool

    @property
    def strength(self) -> float: ...


@dataclass(frozen=True, eq=False)
class Marks:
    """The tokens that carry one subject in some rows of a batch; tensors on the layers' device."""

    rows: slice | Tensor  # which rows; a slice, so that taking them copies nothing, where they are contiguous
    tokens: Tensor  # (n, K) int64, the positions of s*; a row with fewer than K repeats its last
    counts: Tensor  # (n, K) fp32, 1, and 0 for such a repetition
    mask: Tensor  # (n, T) bool, the positions of s*
    word: Tensor  # (n, T) bool, all tokens of the word
    place: int | None  # the one position of s*, where all rows have it there and nowhere else

    def row(self, i: int) -> Marks:
        """Those of one of the rows."""
        one = slice(i, i + 1)
        here = self.rows
        rows = slice(here.start + i, here.start + i + 1) if isinstance(here, slice) else here[one]
        return Marks(rows, self.tokens[one], self.counts[one], self.mask[one], self.word[one], self.place)


@dataclass(frozen=True, eq=False)
class RowGroup:
    """Rows that carry the same subjects: which of the sequence of subjects, and where."""

    rows: slice | Tensor
    carried: tuple[tuple[int, Marks], ...]
    _made: dict[Any, tuple[Tensor, Any]] = field(default_factory=dict)  # kept for all layers and steps

    def reweighting(self, subjects: Sequence[BoundSubject], length: int) -> Tensor | None:
        """What the subjects do to the text's logits x in layers of `length` queries, as one step for all:
        y = x + before, then y + gain·max(y, 0) + after. None where P stays as it is.

        subjects: as many and as marked as those the rows were read from. Made where it is not there yet.
        → (before, gain, after), (3, n, 1|L, T) in fp32. gain: λ_q − 1 at the tokens of s*. before, after:
        log r at the tokens of bounded words; as subjects are taken in turn, it counts before the λ of a
        subject that comes later.
        """
        here = [(subjects[number], marks) for number, marks in self.carried]
        if not any(subject.reweights for subject, _ in here):
            return None
        settings = [(s.attention_scale, s.strength, s.bounded, s.region) for s, _ in here]
        key = (length, *((*numbers, id(region)) for *numbers, region in settings))
        if key not in self._made:
            self._made[key] = _reweighting(here), settings  # regions are kept, so that an id is theirs
        return self._made[key][0]


@dataclass(frozen=True, eq=False)
class Rows:
    """A batch in groups. back: (B,), brings the groups' rows, joined, into the batch's order; None if they
    are."""

    groups: tuple[RowGroup, ...]
    back: Tensor | None
    _made: dict[tuple[int, ...], Rows] = field(default_factory=dict)  # kept for all layers and steps

    def only(self, numbers: Sequence[int]) -> Rows:
        """The same rows with these of the subjects, by their numbers, and without the others."""
        wanted = tuple(numbers)
        if wanted not in self._made:
            kept = [[(n, marks) for n, marks in group.carried if n in wanted] for group in self.groups]
            groups = [RowGroup(g.rows, tuple(c)) for g, c in zip(self.groups, kept, strict=True)]
            self._made[wanted] = Rows(tuple(groups), self.back)
        return self._made[wanted]


@torch.compiler.disable  # it reads on the host
def read_rows(subjects: Sequence[Marked], device: torch.device) -> Rows:
    """What the layers of a forward pass on `device` have to know of the subjects' masks.

    Waits for the device of a mask that is not on the CPU; nothing else does. Strength 0 carries nothing.
    Masks are as `check_subjects` wants them.
    """
    masks = [subject.mask.cpu() for subject in subjects]
    counts = [
        mask.sum(dim=1).tolist() if subject.strength else [0] * len(mask)
        for subject, mask in zip(subjects, masks, strict=True)
    ]
    kinds = [tuple(i for i, count in enumerate(row) if count) for row in zip(*counts, strict=True)]
    order: list[int] = []
    groups = []
    for kind in dict.fromkeys(kinds):  # as they come: where equal rows are neighbours, no row has to move
        here = [row for row, other in enumerate(kinds) if other == kind]
        order += here
        rows = _rows(here, device)
        marks = [_marks(masks[i][here], _word(subjects[i])[here], rows, device) for i in kind]
        groups.append(RowGroup(rows, tuple(zip(kind, marks, strict=True))))
    inverse = torch.tensor(sorted(range(len(order)), key=order.__getitem__))
    back = None if order == sorted(order) else onto(inverse, device)
    return Rows(tuple(groups or [RowGroup(slice(None), ())]), back)


def by_rows(
    run: Callable[..., Tensor], subjects: Sequence[Marked], rows: Rows | None, *tensors: Tensor
) -> Tensor:
    """Calls run(carried, *tensors) on each group of rows, carried being its (subject, Marks) pairs, and joins
    what comes back in the batch's order. rows: None reads them."""
    rows = read_rows(subjects, tensors[0].device) if rows is None else rows
    parts = [_of_group(run, subjects, group, tensors) for group in rows.groups]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out if rows.back is None else out[rows.back]


def _of_group(
    run: Callable[..., Tensor], subjects: Sequence[Marked], group: RowGroup, tensors: Sequence[Tensor]
) -> Tensor:
    """A function of its own, for a generator that reads a comprehension's variable cannot be compiled by some
    versions of PyTorch."""
    carried = [(subjects[i], marks) for i, marks in group.carried]
    return run(carried, *[take(x, group.rows) for x in tensors])


def take(x: Any, rows: slice | Tensor) -> Any:
    """x[rows]; one row, a vector or None is for every row."""
    return x if x is None or x.ndim == 1 or len(x) == 1 else x[rows]


def nested_value_in(query: Tensor, subject: BoundSubject, rows: slice | Tensor, *, heads: int) -> Tensor:
    """`nested_value` of the queries (n, L, H·d) of some rows of the batch: (n, H, L, d)."""
    key, value, bias = (take(x, rows) for x in (subject.key, subject.value, subject.token_bias))
    here = BoundSubject(key=key, value=value, mask=subject.mask, token_bias=bias)  # all that v*_q depends on
    return nested_value(query, here, heads=heads)


def _reweighting(carried: Sequence[tuple[BoundSubject, Marks]]) -> Tensor:
    owned = torch.zeros_like(carried[0][1].mask)[:, None]  # (n, 1, T), tokens of s* so far
    before = gain = after = owned.float()
    for subject, marks in carried:
        mask, region = marks.mask[:, None], take(subject.region, marks.rows)
        region = None if region is None else region[..., None].float()  # (1|n, L, 1)
        change = (subject.attention_scale - 1) * (subject.strength * mask.float())
        gain = gain + (change if region is None else change * region)
        owned = owned | mask
        if subject.bounded and region is not None:
            log = torch.where(region > 0, region.clamp_min(1e-30).log(), LOG_ZERO) * marks.word[:, None]
            before, after = before + log * ~owned, after + log * owned
    return torch.stack(torch.broadcast_tensors(before, gain, after))


def _rows(here: list[int], device: torch.device) -> slice | Tensor:
    if here == list(range(here[0], here[-1] + 1)):
        return slice(here[0], here[-1] + 1)
    return onto(torch.tensor(here), device)


def _word(subject: Marked) -> Tensor:
    return subject.mask if subject.word is None else subject.word


def _marks(mask: Tensor, word: Tensor, rows: slice | Tensor, device: torch.device) -> Marks:
    """mask, word: (n, T) of these rows, the mask on the CPU and with a True in each."""
    number = mask.cumsum(dim=1)  # (n, T), how many s* there are up to each token
    places = torch.arange(int(number[:, -1].max()))
    wanted = (places + 1).minimum(number[:, -1:])  # (n, K): the first, the second, …
    tokens = (number[:, None] < wanted[..., None]).sum(dim=-1)  # the token at which the count gets there
    counts = (places < number[:, -1:]).float()
    place = int(tokens[0, 0]) if tokens.shape[1] == 1 and bool((tokens == tokens[0]).all()) else None
    tokens, counts, mask, word = (onto(x, device) for x in (tokens, counts, mask, word))
    return Marks(rows, tokens, counts, mask, word, place)
