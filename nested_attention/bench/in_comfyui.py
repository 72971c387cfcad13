"""Runs what has to run inside ComfyUI (`bench/comfy/`) in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import NestedAttentionError
from ..find_comfyui import find_comfyui
from ..paths import PACK
from .report import table

# ComfyUI's folder comes first and the pack's last: both have a module called nodes.
_CHILD = """
import json, sys
task, out, comfyui, pack, options = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path.insert(0, comfyui)
sys.path.append(pack)
import torch
from comfy.cli_args import args
args.cpu = not torch.cuda.is_available()
options = json.loads(options)
torch.set_num_threads(options.pop("threads"))
from nested_attention.bench.comfy import pictures, sampling, slots
run = {
    "pictures": pictures.pictures, "loading": pictures.loading, "sampling": sampling.sampling,
    "slots": slots.slots,
}[task]
with open(out, "w") as file:
    json.dump(run(**options), file)
"""


def run_in_comfyui(task: str, **options: Any) -> dict[str, Any]:
    """Calls a function of `bench/comfy/` and returns what it found.

    Raises NestedAttentionError, with the end of its output, if there is no ComfyUI or the process fails.
    """
    comfyui, where = find_comfyui()
    if comfyui is None:
        raise NestedAttentionError(f"bench: {task} runs in ComfyUI, which was not found: {where}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-c", _CHILD, task, str(out), str(comfyui), str(PACK), json.dumps(options)]
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": str(options["threads"])},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NestedAttentionError(f"bench: {task} in ComfyUI failed:\n{done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def run_sampling(
    *, size: int, tokens: Sequence[int], subjects: Sequence[int], batches: Sequence[int], repeats: int,
    threads: int, steps: int = 4, unet: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Steps of sampling on SDXL's whole UNet, or on one of another configuration."""
    return run_in_comfyui(
        "sampling", size=size, tokens=tokens, subjects=subjects, batches=batches, steps=steps,
        repeats=repeats, threads=threads, unet=unet,
    )  # fmt: skip


def sampling_table(found: dict[str, Any]) -> str:
    """× plain, and in parentheses what is more than plain's."""
    header = ["form", "batch", "wall ms (all)", "GPU ms", "kernels", "copies", "waits", "items", "peak MiB"]
    plain = {one["batch"]: one for one in found["forms"] if one["form"] == "plain"}
    rows = []
    for one in found["forms"]:
        base = plain[one["batch"]]
        walls = f"{min(one['walls']):.0f}–{max(one['walls']):.0f}"
        rows.append(
            [
                one["form"],
                str(one["batch"]),
                f"{one['wall']:.1f} ({walls}) = {one['wall'] / base['wall']:.2f} ×",
                _of_plain(one, base, "kernels_ms", ".1f"),
                *(_more_than_plain(one, base, what) for what in ("kernels", "copies", "waits", "items")),
                _more_than_plain(one, base, "peak"),
            ]
        )
    return table(header, rows)


def _of_plain(one: dict[str, Any], base: dict[str, Any], what: str, form: str) -> str:
    return "–" if one[what] is None else f"{one[what]:{form}} = {one[what] / base[what]:.2f} ×"


def _more_than_plain(one: dict[str, Any], base: dict[str, Any], what: str) -> str:
    if one[what] is None:
        return "–"
    return f"{one[what]:.0f}" if one is base else f"{one[what]:.0f} ({one[what] - base[what]:+.0f})"


def run_pictures(*, repeats: int, threads: int, clock: str) -> dict[str, Any]:
    """Pictures of the small world with 0 to 10 subjects in one graph."""
    return run_in_comfyui(
        "pictures", repeats=repeats, threads=threads, clock=clock, counts=(0, 1, 2, 4, 10), steps=10
    )


def pictures_table(found: dict[str, Any]) -> str:
    none = found["seconds per picture"]["0"][0]
    rows = [
        [f"{count} subjects", f"{middle:.3f} ({low:.3f}–{high:.3f})", f"{middle / none:.2f}"]
        for count, (middle, low, high) in found["seconds per picture"].items()
    ]
    rows += [
        [name, f"{found[name]:.3f}", "–"]
        for name in ("encode subject", "apply subject, first", "apply subject, again")
    ]
    return table(
        [f"{found['steps']} steps, {found['tokens']} tokens", "s (quartiles)", "of no subject"], rows
    )


def run_slots(*, size: int, tokens: Sequence[int], repeats: int, threads: int, clock: str) -> dict[str, Any]:
    """SDXL's layers with a subject in their slots, under ComfyUI's attention as it is on a CPU by default and
    with --use-pytorch-cross-attention."""
    return run_in_comfyui(
        "slots", size=size, tokens=tokens, functions=("sub_quad", "pytorch"), repeats=repeats,
        threads=threads, clock=clock,
    )  # fmt: skip


def slots_table(found: dict[str, Any]) -> str:
    header = ["layer", "N", "rows", "ComfyUI's attention", "plain", "floor", "empty slot", "occupied slot"]
    rows = []
    for one in found["layers"]:
        ms = {form: timing["median"] for form, timing in one["ms"].items()}
        base = ms["plain"] + ms["floor"]
        rows.append(
            [one["layer"], str(one["tokens"]), str(one["rows"]), one["function"]]
            + [f"{t['median']:.1f} ({t['low']:.1f}–{t['high']:.1f})" for t in one["ms"].values()]
            + [f"{ms['empty slot'] / base:.2f}", f"{ms['occupied slot'] / base:.2f}"]
        )
    return table([*header, "empty / (plain + floor)", "occupied / (plain + floor)"], rows)
