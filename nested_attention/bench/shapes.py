"""The cross-attention layers of SDXL as a benchmark sees them: queries × width."""

from __future__ import annotations

from dataclasses import dataclass

from ..sites import sdxl_sites

TEXT_TOKENS = 77
TEXT_WIDTH = 2048
_CELLS = {640: 16, 1280: 32}  # picture pixels a query, a side, at the two widths that have cross-attention


@dataclass(frozen=True, order=True)
class LayerShape:
    """One layer: image queries, inner width (all heads), heads."""

    queries: int
    inner: int
    heads: int

    @property
    def name(self) -> str:
        return f"{self.queries}×{self.inner}"


def sdxl_shapes(size: int = 1024) -> tuple[LayerShape, ...]:
    """The different layers of SDXL for a picture of size × size pixels."""
    return tuple(sorted(set(sdxl_layers(size)), reverse=True))


def sdxl_layers(size: int = 1024) -> tuple[LayerShape, ...]:
    """All 70 layers of SDXL for a picture of size × size pixels."""
    return tuple(
        LayerShape((size // _CELLS[site.inner_dim]) ** 2, site.inner_dim, site.heads) for site in sdxl_sites()
    )
