"""Where in the picture a subject counts: masks on any layer's grid, regions found in the word's own
attention, and self-attention that does not cross from one subject's region into another's.

Two people in one picture mix for two reasons the paper names as open: both words are attended in one place,
and self-attention carries features from one person to the other. Regions answer the first (`BoundSubject`'s
`region` and `bounded`), `self_attention_share` the second. Letters as in `attention.py`; S subjects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .anchored import attention_to
from .attention import onto, text_weights
from .inspection.observed import Box, ObservedLayer, Observer

SHARPNESS = 4.0
"""Power of the ratio of two words' attention: at half the attention of another one, a region is 1/16."""

WATCHED_SHARE = 0.3
"""Part of a sampling's steps in which the words' attention is watched before regions are held. Layout is
settled by then."""

COARSEST = 4
"""Layers are watched whose cells are at most this many latent cells wide; coarser ones do not tell two people
apart."""

OVERSHOOT = 0.4
"""How far values of a picture or mask may lie outside of 0 to 1. Bicubic resizing leaves such edges (up to a
quarter), which are clamped; what goes further has another range."""

TINY = 1e-6  # smallest share: its logarithm, -14, leaves a key a millionth of its weight


def area_mean(maps: Tensor, grid: tuple[int, int], part: Box | None = None) -> Tensor:
    """Maps (…, h, w) on a grid (rows, columns) that covers the whole of them, or a part: (…, rows, columns).

    Each cell is the exact mean over its area, whether it covers many pixels or a fraction of one, and
    wherever its border falls; a map of ones stays one and a map of zeros zero. In fp64 on the CPU, elsewhere
    in fp32; returned as fp32.
    """
    top, left, height, width, whole_height, whole_width = part or (0, 0, 1, 1, 1, 1)
    down = shares(maps.shape[-2], grid[0], top / whole_height, height / whole_height)
    across = shares(maps.shape[-1], grid[1], left / whole_width, width / whole_width)
    return resampled(maps, down, across)


def resampled(maps: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(…, h, w), and shares (rows, h) and (columns, w) → (…, rows, columns); precision as in `area_mean`."""
    precise = torch.float64 if maps.device.type == "cpu" else torch.float32
    down, across = (onto(x.to(precise), maps.device) for x in (down, across))
    return (down @ maps.to(precise) @ across.mT).float()


def shares(pixels: int, cells: int, start: float = 0, length: float = 1) -> Tensor:
    """(cells, pixels): which share of each cell's extent each pixel covers. start, length: of 1."""
    edges = (start + length * torch.arange(cells + 1, dtype=torch.float64) / cells) * pixels
    low, high = edges[:-1, None], edges[1:, None]
    pixel = torch.arange(pixels, dtype=torch.float64)
    covered = (torch.minimum(high, pixel + 1) - torch.maximum(low, pixel)).clamp_min(0)
    return covered / covered.sum(dim=1, keepdim=True)


def cells_of(part: Box, grid: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a grid of the whole picture that a part of it touches: one at least."""
    rows, columns = grid
    top, left, height, width, whole_height, whole_width = part
    down = slice(top * rows // whole_height, -(-(top + height) * rows // whole_height))
    across = slice(left * columns // whole_width, -(-(left + width) * columns // whole_width))
    return down, across


def word_attention(query: Tensor, key: Tensor, word: Tensor, *, heads: int) -> Tensor:
    """How much each query attends to a word: Σ P over its tokens, averaged over heads, in fp32.

    (B, L, H·d), (B, T, H·d), (B, T) bool → (B, L), in [0, 1]
    """
    return attention_to(text_weights(query, key, heads=heads), word)


def follows_layout(site: str) -> bool:
    """Whether a layer is in the decoder, and the first of its transformer: there attention follows the
    picture's layout best."""
    return site.startswith("up_blocks.") and ".transformer_blocks.0." in site


def assign_regions(attention: Tensor, sharpness: float = SHARPNESS) -> Tensor:
    """Regions from the attention that subjects' words drew: (B, S, h, w) ≥ 0 → (B, S, h, w) in [0, 1].

    Each subject's map is divided by its mean, so that a word that is attended more everywhere does not win
    everywhere. A query belongs fully to the subject that then draws most there, and to another one by the
    ratio to it, to the power of `sharpness`. A subject alone in its picture, and one no word of which was
    attended, gets the whole picture.
    """
    share = attention / attention.mean(dim=(-2, -1), keepdim=True).clamp_min(
        torch.finfo(attention.dtype).tiny
    )
    most = share.amax(dim=1, keepdim=True)
    region = (share / most.clamp_min(torch.finfo(attention.dtype).tiny)).pow(sharpness)
    absent = attention.amax(dim=(-2, -1), keepdim=True) == 0
    return torch.where(absent | (most == 0), 1.0, region).clamp(0, 1)


def self_attention_share(regions: Tensor, bounding: Tensor) -> Tensor:
    """The share of its weight that each key keeps for each query, where subjects' regions are kept apart.

    regions: (B, S, L) in [0, 1]. bounding: (S,) or (B, S) bool, subjects that are kept apart from all others;
    two subjects without it are not kept apart from one another. → (B, L, L) in [0, 1], queries × keys

    A cell belongs to subject A alone with e_A = r_A·Π_{B≠A}(1 − r_B); a key keeps 1 − Σ_{A≠B} e_A(q)·e_B(k).
    So the background and what regions share is seen by all, and a query always sees itself.
    """
    outside = 1 - regions
    number = regions.shape[1]
    alone = torch.stack(
        [
            regions[:, one] * outside[:, [other for other in range(number) if other != one]].prod(dim=1)
            for one in range(number)
        ],
        dim=1,
    )  # (B, S, L), e
    apart = bounding[..., :, None] | bounding[..., None, :]
    apart = (apart & ~torch.eye(number, dtype=torch.bool, device=apart.device)).to(regions)  # (…, S, S)
    return (1 - alone.mT @ (apart @ alone)).clamp(0, 1)


def self_attention_bias(regions: Tensor, bounding: Tensor) -> Tensor:
    """Log of `self_attention_share`, to be added to the logits of self-attention: (B, 1, L, L), in fp32."""
    return self_attention_share(regions.float(), bounding).clamp_min(TINY).log()[:, None]


def rows_apart(carries: Tensor, bounding: Tensor) -> list[int]:
    """The rows in which two subjects with regions meet and one of them is to be kept apart.

    carries: (S, B) bool on the CPU, which rows carry which subject. bounding: (S,) bool, as above.
    """
    meet = (carries.sum(dim=0) >= 2) & (carries & bounding[:, None]).any(dim=0)
    return meet.nonzero().flatten().tolist()


def bias_in_rows(regions: Sequence[Tensor], carries: Tensor, bounding: Tensor, rows: Sequence[int]) -> Tensor:
    """`self_attention_bias` of some rows of a batch: (rows, 1, L, L).

    regions: of each subject, (1|B, L). carries, bounding: as `rows_apart` takes them.
    """
    device = regions[0].device
    taken = [x if len(x) == 1 else x[list(rows)] for x in regions]
    stacked = torch.stack([x.expand(len(rows), -1) for x in taken], dim=1)  # (n, S, L)
    here = onto(carries[:, list(rows)].mT[..., None], device)
    return self_attention_bias(stacked * here, onto(bounding, device))


class RegionFinder:
    """What subjects' words were attended to while one batch of pictures is sampled, and the regions that
    follow: an observer of the first steps.

    Maps from layers of any resolution, of whole pictures or of parts of them, are added up on the latent
    grid; `settle` turns the sum into regions. names: of the subjects. One finder a sampling.
    """

    def __init__(self, pictures: int, names: Sequence[str]) -> None:
        self._pictures, self._names = pictures, tuple(names)
        self._sum: Tensor | None = None  # (pictures, S, H, W)

    @property
    def empty(self) -> bool:
        return self._sum is None

    @property
    def unseen(self) -> set[int]:
        """Numbers of the subjects whose word drew no attention in any picture so far."""
        if self._sum is None:
            return set(range(len(self._names)))
        return set((self._sum.amax(dim=(0, 2, 3)) == 0).nonzero().flatten().tolist())

    def watches(self, site: str) -> bool:
        return follows_layout(site)

    def see(self, layer: ObservedLayer) -> None:
        """Adds what the layer attends to each subject's word, where its cells are fine enough."""
        for subject in layer.subjects:
            rows = subject.rows if subject.name in self._names else []
            if not rows or not fine(layer.grid, layer.places[rows[0]][1]):
                continue
            query, key = (x[rows].detach() for x in (layer.query, layer.key))
            word = onto(subject.word[rows], query.device)
            seen = word_attention(query, key, word, heads=layer.heads).unflatten(1, layer.grid)
            for row, attention in zip(rows, seen, strict=True):
                self.add(
                    self._names.index(subject.name), layer.places[row][0], attention, layer.places[row][1]
                )

    def add(self, subject: int, picture: int, attention: Tensor, part: Box) -> None:
        """attention: (h, w), what one layer attended to a subject's word in a part of one picture. The grid
        is that of the first latents; samplers may let them grow later."""
        if self._sum is None:
            shape = (self._pictures, len(self._names), *part[4:])
            with torch.inference_mode(False):  # so that a thread that is not in that mode may add to it
                self._sum = attention.new_zeros(shape, dtype=torch.float32)
        down, across = cells_of(part, (self._sum.shape[2], self._sum.shape[3]))
        place = self._sum[picture, subject, down, across]  # (rows, columns)
        place += area_mean(attention, (place.shape[0], place.shape[1])).to(self._sum.device)

    def settle(self) -> Tensor | None:
        """(pictures, S, H, W) in [0, 1]; None if nothing was added."""
        return None if self._sum is None else assign_regions(self._sum)


class RegionSearch:
    """The regions of one sampling of so many steps: looked for in its first steps, and held from then on.

    pictures, names: `RegionFinder`'s; without names nothing is looked for. called: what users call the
    subjects. start: what the host calls the option that starts a subject. tell: is called with what users
    should read. found: (pictures, S, H, W) in [0, 1]; None until it is held, and where nothing was attended.
    """

    def __init__(
        self,
        pictures: int,
        names: Sequence[str],
        called: Sequence[str],
        steps: int,
        *,
        start: str,
        tell: Callable[[str], None],
    ) -> None:
        self._finder = RegionFinder(pictures, names) if names else None
        self._called, self._start, self._tell = called, start, tell
        self._until = watched_steps(steps)
        self.found: Tensor | None = None
        self._alone = len(called) < 2  # it has the whole picture anyway
        if not self._alone and 0 < steps <= self._until:
            tell(
                f"the sampling has too few steps ({steps}) to find regions in, so "
                f"{', '.join(map(repr, called))} count in the whole picture. Use more steps, or give them "
                "masks"
            )

    @property
    def watching(self) -> bool:
        """Whether the words' attention is being watched."""
        return self._finder is not None

    def observers(self, others: tuple[Observer, ...]) -> tuple[Observer, ...]:
        """Who sees the layers of the present step, besides others."""
        return others if self._finder is None else (*others, self._finder)

    def step(self, number: int) -> None:
        """Before each step, counted from 0: what was seen becomes regions once the first steps are over."""
        if self._finder is None or number < self._until:
            return
        for unseen in () if self._alone else sorted(self._finder.unseen):
            self._tell(
                f"no region was found for {self._called[unseen]!r}, whose word nothing attended in the first "
                "third of the steps, so it counts in the whole picture. Start it with the sampling "
                f"({self._start}), or give it a mask"
            )
        self.found, self._finder = self._finder.settle(), None


def fine(grid: tuple[int, int], part: Box) -> bool:
    """Whether the cells of a layer's grid on a part of a picture tell two people apart."""
    return -(-part[2] // grid[0]) <= COARSEST


def watched_steps(steps: int) -> int:
    """How many of a sampling's first steps are watched: at least one."""
    return max(1, round(WATCHED_SHARE * steps))
