"""`nested-attention bench`: the chosen parts, one after the other, into one document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import NestedAttentionError
from ..typed import read_numbers
from . import report
from .baselines import FORMS, MOST_SUBJECTS
from .layers import DTYPES, Grid, run_layers, run_sweep
from .scaling import run_scaling
from .timing import Clock


@dataclass(frozen=True)
class Settings:
    """parts: of layers, sweep, scaling, slots, sampling, pictures, loading. threads: of the CPU."""

    parts: tuple[str, ...]
    grid: Grid
    threads: int = 2

    @classmethod
    def parse(
        cls,
        parts: Sequence[str],
        numbers: Mapping[str, str],
        *,
        dtypes: str,
        forms: str,
        device: str,
        compiled: bool,
        repeats: int,
        threads: int,
        clock: Clock,
    ) -> Settings:
        """Lists as the command line has them: numbers or names between commas.

        Raises NestedAttentionError for an entry that is none, and for a device that is not there.
        """
        if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
            raise NestedAttentionError(
                f"bench: --device is {device}; expected cpu, or cuda where PyTorch finds a GPU. Its rows in "
                "docs/performance.md stay 'not measured' until the command runs on a machine that has one"
            )
        if clock == "cpu" and device != "cpu":
            raise NestedAttentionError(
                "bench: --clock cpu counts no work of a GPU; use --clock wall with --device cuda"
            )
        grid = Grid(
            tokens=_numbers("tokens", numbers["tokens"]),
            subjects=_numbers("subjects", numbers["subjects"]),
            batches=_numbers("batches", numbers["batches"]),
            sizes=_numbers("sizes", numbers["sizes"]),
            dtypes=_names("dtypes", dtypes, DTYPES),
            forms=_names("forms", forms, FORMS) if forms else tuple(FORMS),
            device=device,
            compiled=compiled,
            repeats=repeats,
            clock=clock,
        )
        if max(grid.subjects) > MOST_SUBJECTS:
            raise NestedAttentionError(
                f"bench: --subjects is {numbers['subjects']}; expected {MOST_SUBJECTS} at most, as many as a "
                "prompt of 77 tokens has room for"
            )
        if any(size % 32 for size in grid.sizes):
            raise NestedAttentionError(
                f"bench: --sizes is {numbers['sizes']}; expected multiples of 32, as SDXL's layers need them"
            )
        return cls(tuple(dict.fromkeys(parts)), grid, threads)


def run(
    settings: Settings,
    out: Path,
    page: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Measures, writes the JSON to `out`, and returns the tables. page: where they are put in place of
    earlier ones, too. Raises NestedAttentionError before anything is measured if the page has no place for
    one."""
    if page is not None:
        for part in settings.parts:
            report.insert(page.read_text(encoding="utf-8"), part, "")
    torch.set_num_threads(settings.threads)
    grid = settings.grid
    document: dict[str, Any] = {
        "environment": report.environment(grid.device),
        "settings": {"threads": settings.threads, **asdict(grid)},
    }
    tables = []
    for part in settings.parts:
        figures, table = _PARTS[part](grid, say)
        document[part] = figures
        tables.append(f"## {part}\n\n{table}")
        report.write(out, document)  # after each part, so that an interrupted run keeps what it has
        if page is not None:
            figures = report.on_page(document["environment"], table)
            text = report.insert(page.read_text(encoding="utf-8"), part, figures)
            page.write_text(text, encoding="utf-8")
    return "\n\n".join(tables)


def _layers(grid: Grid, say: Callable[[str], None]) -> tuple[Any, str]:
    found = list(run_layers(grid, say))
    return [one.as_json() for one in found], report.layers_table(found)


def _sweep(grid: Grid, say: Callable[[str], None]) -> tuple[Any, str]:
    found = list(run_sweep(grid, say))
    return [one.as_json() for one in found], report.layers_table(found)


def _scaling(grid: Grid, say: Callable[[str], None]) -> tuple[Any, str]:
    found = run_scaling(grid, say=say)
    return [one.as_json() for one in found], report.scaling_table(found)


def _slots(grid: Grid, say: Callable[[str], None]) -> tuple[Any, str]:
    from .in_comfyui import run_slots, slots_table

    threads, size = torch.get_num_threads(), grid.sizes[0]
    found = run_slots(size=size, tokens=grid.tokens, repeats=grid.repeats, threads=threads, clock=grid.clock)
    return found, slots_table(found)


def _sampling(grid: Grid, say: Callable[[str], None]) -> tuple[Any, str]:
    from .in_comfyui import run_sampling, sampling_table

    found = run_sampling(
        size=grid.sizes[0], tokens=grid.tokens, subjects=grid.subjects, batches=grid.batches,
        repeats=grid.repeats, threads=torch.get_num_threads(),
    )  # fmt: skip
    return found, sampling_table(found)


def _pictures(grid: Grid, say: Callable[[str], None]) -> tuple[Any, str]:
    from .in_comfyui import pictures_table, run_pictures

    found = run_pictures(repeats=grid.repeats, threads=torch.get_num_threads(), clock=grid.clock)
    return found, pictures_table(found)


def _loading(grid: Grid, say: Callable[[str], None]) -> tuple[Any, str]:
    from .loading import loading_table, run_loading

    found = run_loading(threads=torch.get_num_threads(), say=say)
    return found, loading_table(found)


_PARTS: dict[str, Callable[[Grid, Callable[[str], None]], tuple[Any, str]]] = {
    "layers": _layers,
    "sweep": _sweep,
    "scaling": _scaling,
    "slots": _slots,
    "sampling": _sampling,
    "pictures": _pictures,
    "loading": _loading,
}


def _numbers(option: str, text: str) -> tuple[int, ...]:
    numbers = read_numbers(text, int)
    if not numbers or min(numbers) < 1:
        raise NestedAttentionError(
            f"bench: --{option} is {text!r}; expected whole numbers above 0 between commas, such as 256,1024"
        )
    return tuple(numbers)


def _names(option: str, text: str, known: Mapping[str, Any]) -> tuple[str, ...]:
    entries = tuple(entry.strip() for entry in text.split(","))
    odd = [entry for entry in entries if entry not in known]
    if odd:
        raise NestedAttentionError(f"bench: --{option} has {odd[0]!r}; expected some of {', '.join(known)}")
    return entries
