"""A schedule of strength over the blocks of a UNet: `all:0, up:1, up.0.2:0.5`.

A block is named as in diffusers, shortened: `down`, `mid`, `up`; `up.0`, its first resolution; `up.0.2`, the
third transformer of that resolution. `all` is the whole UNet. The most specific name that covers a layer
decides; a layer that none covers keeps 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .errors import NestedAttentionError

ALL = "all"


def parse_blocks(text: str, sites: Iterable[str]) -> Mapping[str, float]:
    """The factor in [0, 1] on a subject's strength at each site (diffusers' module paths).

    Raises NestedAttentionError, to be prefixed with who asks, for text of another form, a factor out of
    range, a block named twice, and a block the UNet does not have.
    """
    names = {site: _names(site) for site in sites}
    known = list(dict.fromkeys(name for covering in names.values() for name in covering))
    factors: dict[str, float] = {}
    for entry in text.replace("\n", ",").replace(";", ",").split(","):
        if not entry.strip():
            continue
        name, factor = _entry(entry, known)
        if name in factors:
            raise NestedAttentionError(f"blocks: {name!r:.120} is given twice, keep one of them")
        factors[name] = factor
    if factors and ":" not in text and ALL not in factors:  # names alone, which count fully as it is
        only = ", ".join([f"{ALL}:0", *(f"{name}:1" for name in factors)])
        raise NestedAttentionError(
            f"blocks: {text.strip()!r:.120} changes nothing, as blocks that are not named count fully; write "
            f"{only!r} for the subject to count there alone"
        )
    return {
        site: next((factors[name] for name in reversed(covering) if name in factors), 1.0)
        for site, covering in names.items()
    }


def _entry(entry: str, known: list[str]) -> tuple[str, float]:
    name, colon, number = (part.strip() for part in entry.partition(":"))
    name = name.lower()
    if name not in known:
        raise NestedAttentionError(
            f"blocks: {name!r:.120} is no block of this model; it has {', '.join(known)}"
        )
    try:
        factor = float(number) if colon else 1.0
    except ValueError:
        factor = -1.0
    if not 0 <= factor <= 1:  # false for NaN too
        raise NestedAttentionError(
            f"blocks: {entry.strip()!r:.120} gives {name!r} the factor {number!r:.120}; expected a number "
            f"from 0 to 1, as in '{name}:0.5'"
        )
    return name, factor


def _names(site: str) -> tuple[str, ...]:
    """What covers a site, from the widest: `down_blocks.1.attentions.0.…` → all, down, down.1, down.1.0."""
    block, *path = site.split(".")
    kind = block.removesuffix("_blocks").removesuffix("_block")
    names = [ALL, kind]
    if kind != "mid":
        names += [f"{kind}.{path[0]}", f"{kind}.{path[0]}.{path[2]}"]
    return tuple(names)
