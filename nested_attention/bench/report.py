"""The figures of a run as JSON and as tables, with what they depend on: device, versions, date, threads."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import NestedAttentionError
from .layers import Measured
from .scaling import Scaling

NOT_MEASURED = "not measured"


def environment(device: str) -> dict[str, Any]:
    """What has to stand beside every figure."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nested_attention": __version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def insert(page: str, part: str, figures: str) -> str:
    """A page with a part's figures replaced. Raises NestedAttentionError if it has no place for them."""
    begin, end = f"<!-- figures: nested-attention bench {part} -->", "<!-- end of figures -->"
    if begin not in page or end not in page.split(begin, 1)[1]:
        raise NestedAttentionError(
            f"bench: the page has no lines {begin!r} and {end!r} to put figures between; name "
            "docs/performance.md, or none"
        )
    before, rest = page.split(begin, 1)
    return f"{before}{begin}\n\n{figures}\n\n{end}{rest.split(end, 1)[1]}"


def on_page(found: dict[str, Any], table: str) -> str:
    """A table as it stands on a page: with the environment that it was measured in."""
    facts = f"{found['date']}, {found['device']}, Python {found['python']}, PyTorch {found['torch']}."
    return f"{facts}\n\n{table}"


def layers_table(found: Iterable[Measured]) -> str:
    header = [
        "layer",
        "size",
        "N",
        "subjects",
        "batch",
        "dtype",
        "form",
        "ms (quartiles)",
        "of plain + floor",
    ]
    header += ["faster than explicit", "extra MiB", "launches", "syncs"]
    rows = []
    for one in found:
        ratios, time_ = one.ratios, one.time
        rows.append(
            [
                one.layer,
                str(one.size),
                str(one.tokens),
                str(one.subjects),
                str(one.batch),
                one.dtype,
                one.form,
                f"{time_.median:.2f} ({time_.low:.2f}–{time_.high:.2f})",
                _number(ratios.get("of plain + floor"), ".2f"),
                _number(ratios.get("times faster than explicit"), ".1f"),
                NOT_MEASURED if one.peak is None else f"{one.peak / 2**20:.1f}",
                _number(one.launches, "d"),
                _number(one.syncs, "d"),
            ]
        )
    return table(header, rows)


def scaling_table(found: Iterable[Scaling]) -> str:
    units = {"tokens": "token", "subjects": "subject", "size": "million pixels", "batch": "picture"}
    header = ["axis", "layer", "values", "ms added", "ms per", "start, ms", "exponent", "R²"]
    rows = [
        [
            slope.axis,
            slope.layer,
            ", ".join(map(str, slope.values)),
            ", ".join(f"{added:.1f}" for added in slope.added),
            f"{slope.per_unit:.4g} per {units[slope.axis]}",
            f"{slope.start:.2f}",
            f"{slope.exponent:.2f}",
            f"{slope.r2:.3f}",
        ]
        for slope in found
    ]
    return table(header, rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | int | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
