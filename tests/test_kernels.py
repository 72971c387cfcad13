"""The back ends: which one runs, what it launches, and the Triton kernel, interpreted on the CPU and compiled
for GPUs; both in processes of their own."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from launches import FusedAttention, Launches
from test_attention import CHUNKS, make_text, one_subject
from torch.overrides import TorchFunctionMode

from nested_attention import kernels
from nested_attention.bench.baselines import ADAPTER_TOKENS, FORMS, make_inputs
from nested_attention.bench.shapes import sdxl_layers, sdxl_shapes
from nested_attention.errors import NestedAttentionError
from nested_attention.kernels import chunks
from nested_attention.kernels.rows import read_rows

HERE = Path(__file__).parent

COMPILE = """
import inspect
import conftest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nested_attention.kernels import epilogue

SHARED = {80: 163, 86: 99, 89: 99, 90: 227}  # KB that a block may have
kernel = epilogue._add_change

def shared(capability, dtype, size, reweighted):
    block, warps = epilogue.REWEIGHTED if reweighted else epilogue.PLAIN
    width = 20 * size
    constants = dict(
        REGULAR=True, INNER=not reweighted, GATED=True, REWEIGHTED=reweighted, TEXT=reweighted, SIZE=size,
        WIDTH=width, TOGETHER=5, BL=epilogue.QUERIES, BT=block, BC=epilogue.COLUMNS,
        BD=triton.next_power_of_2(size), BW=triton.next_power_of_2(width),
    )
    types = {name: "*" + dtype for name in ("out", "q", "k", "v", "star")}
    types |= {name: "*fp32" for name in ("counts", "region", "weights")} | {"tokens": "*i64"}
    types |= {name: "fp32" for name in ("scale", "strength", "alpha", "epsilon")}
    types |= {name: "constexpr" for name in constants}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    if "constexprs" in inspect.signature(ASTSource).parameters:
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    else:  # Triton 3.2
        signature = {name: kind for name, kind in signature.items() if kind != "constexpr"}
        source = ASTSource(fn=kernel, signature=signature, constants=constants)
    options = {"num_warps": warps, "num_stages": 1}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared

for capability, limit in SHARED.items():
    for case in [("fp16", 64, False), ("fp16", 64, True)] + [("bf16", 128, True)] * (capability == 86):
        found = shared(capability, *case)
        assert found <= limit * 1024, (capability, case, found)
print("compiled")
"""


def run(*arguments: str, **environment: str) -> str:
    pytest.importorskip(
        "triton", reason="Triton comes with PyTorch for CUDA on Linux; it is not installed here"
    )
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_kernel_computes_what_the_reference_does() -> None:
    printed = run("kernel_against_reference.py", TRITON_INTERPRET="1")
    assert printed == "launches counted\nall agree\n"


@pytest.mark.slow
def test_the_kernel_compiles_for_gpus_within_their_shared_memory() -> None:
    assert run("-c", COMPILE) == "compiled\n"


@pytest.mark.parametrize("marked", [[1], [4, 5, 6, 7]])
@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 15), ({"norm": "head"}, 15), ({"strength": 0.5}, 16), ({"alpha": None}, 11)],
)
def test_launches_of_a_layer_in_pytorch(marked: list[int], options: dict[str, object], most: int) -> None:
    """The correction of a layer on what a host has computed, in fp16, for one picture and for four."""
    query, key, value, heads = make_text(2 * len(marked), 64, 77, 10, 64)
    subject = one_subject(key, rows=marked, size=32, **options)
    rows = read_rows([subject], torch.device("meta"))
    query, key, value = (x.to("meta", torch.float16) for x in (query, key, value))
    away = {name: getattr(subject, name).to("meta", torch.float16) for name in ("key", "value")}
    out = torch.empty_like(query)
    with torch.no_grad(), Launches() as launches, FusedAttention(launches):
        chunks.add_correction(
            out, query, key, value, [replace(subject, **away)], heads=heads, plain=True, rows=rows
        )
    assert len(launches.names) <= most, launches.names


class Arithmetic(TorchFunctionMode):
    """`count`: multiplications of matrices, attention's included."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.count += 2 * args[0].numel() * args[1].shape[-2]
        elif func in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
            self.count += out.numel() * args[0].shape[-1]
        elif func is torch.nn.functional.linear:
            self.count += out.numel() * args[1].shape[-1]
        return out


def test_anchored_costs_less_than_a_decoupled_adapter_that_is_projected_in_each_step() -> None:
    """Added in both halves of a guided step, as IPAdapter_plus does, which projects the negative's picture
    besides: SDXL at 1024 pixels, all 70 layers. In multiplications: launches on a GPU are more, and known."""
    counts, launched = dict.fromkeys(("plain", "decoupled projected", "anchored"), 0), {}
    layers = sdxl_layers(1024)
    for shape in sdxl_shapes(1024):
        inputs = make_inputs(shape, tokens=ADAPTER_TOKENS, guided=True)
        away = [replace(one, key=on_meta(one.key), value=on_meta(one.value)) for one in inputs.subjects]
        names = ("query", "key", "value", "image_tokens", "image_weight")
        tensors: dict[str, Any] = {name: on_meta(getattr(inputs, name)) for name in names}
        rows = read_rows(inputs.subjects, torch.device("meta"))
        inputs = replace(inputs, subjects=tuple(away), rows=rows, **tensors)
        for form in counts:
            with torch.no_grad(), Arithmetic() as arithmetic:
                FORMS[form](inputs)
            counts[form] += layers.count(shape) * arithmetic.count
            with torch.no_grad(), Launches() as launches, FusedAttention(launches):
                FORMS[form](inputs)
            launched[form] = len(launches.names)
    added = {form: count - counts["plain"] for form, count in counts.items()}
    assert 0 < added["anchored"] < added["decoupled projected"]
    assert launched["decoupled projected"] - launched["plain"] == 5
    assert launched["anchored"] - launched["plain"] <= 24


def on_meta(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta", torch.float16)


class TestBackend:
    @pytest.fixture(autouse=True)
    def decided_anew(self) -> Iterator[None]:
        kernels._on_device.cache_clear()
        yield
        kernels._on_device.cache_clear()

    @pytest.mark.parametrize("chosen", ["auto", "torch"])
    def test_on_a_cpu_it_is_pytorch_and_the_log_says_so_once(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, chosen: str
    ) -> None:
        monkeypatch.setattr(kernels, "BACKEND", chosen)
        caplog.set_level(logging.INFO)
        query, key, value, heads = make_text(2, 9, 7, 2, 8)
        subjects = [one_subject(key, attention_scale=2.0)]
        for _ in range(2):
            found = kernels.nested(query, key, value, subjects, heads=heads)
            assert torch.equal(found, CHUNKS.nested(query, key, value, subjects, heads=heads))
            change = kernels.correction(query, key, value, subjects, heads=heads)
            assert torch.equal(change, CHUNKS.correction(query, key, value, subjects, heads=heads))
        (line,) = [record.message for record in caplog.records]
        reason = {"auto": "the kernels are for NVIDIA GPUs", "torch": "NESTED_ATTENTION_BACKEND is 'torch'"}
        assert line == f"Nested Attention: subjects run in PyTorch on cpu: {reason[chosen]}"

    @pytest.mark.parametrize(
        ("chosen", "message"),
        [
            ("flash", "BACKEND is 'flash'; expected one of auto, torch, triton"),
            ("triton", "BACKEND is 'triton', and Triton does not run on cpu: the kernels are for NVIDIA"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, chosen: str, message: str
    ) -> None:
        monkeypatch.setattr(kernels, "BACKEND", chosen)
        query, key, value, heads = make_text(2, 9, 7, 2, 8)
        with pytest.raises(NestedAttentionError, match=message):
            kernels.correction(query, key, value, [one_subject(key)], heads=heads)

    @pytest.mark.parametrize(
        ("capability", "failure", "reason"),
        [
            ((7, 5), None, "the kernels are for compute capability 8.0 and above"),
            ((9, 0), RuntimeError("Failed to find C compiler.\nSet CC."), "RuntimeError: Failed to find C"),
            ((9, 0), "the kernel is off by 0.3", "the kernel is off by 0.3"),
            ((9, 0), None, None),
        ],
    )
    def test_a_gpu_on_which_the_kernel_does_not_run_runs_pytorch(
        self,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        capability: tuple[int, int],
        failure: object,
        reason: str | None,
    ) -> None:
        def tried(device: torch.device) -> object:
            if isinstance(failure, Exception):
                raise failure
            return failure

        fake = ModuleType("epilogue")
        fake.tried = tried  # type: ignore[attr-defined]
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(kernels, "epilogue", fake, raising=False)
        monkeypatch.setitem(sys.modules, f"{kernels.__name__}.epilogue", fake)
        caplog.set_level(logging.INFO)
        found = kernels._on_device(torch.device("cuda", 0), "auto")
        (line,) = [record.message for record in caplog.records]
        if reason is None:
            assert found is fake
            assert line == "Nested Attention: subjects run on Triton kernels on cuda:0"
        else:
            assert found is None
            assert line.startswith("Nested Attention: subjects run in PyTorch on cuda:0: " + reason)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("marked", [[1], [0, 2], [0, 1, 2], []])
@pytest.mark.parametrize("options", [{}, {"attention_scale": 2.0}, {"region": torch.rand(1, 9)}])
def test_what_is_added_to_a_host_s_attention_is_the_correction(
    marked: list[int], plain: bool, options: dict[str, object]
) -> None:
    query, key, value, heads = make_text(3, 9, 7, 2, 8)
    subjects = [one_subject(key, rows=marked, **options)]
    theirs = CHUNKS.nested(query, key, value, [], heads=heads) + (0 if plain else torch.randn(3, 9, 16))
    expected = theirs + CHUNKS.correction(
        query, key, value, subjects, heads=heads, **({"plain": theirs} if plain else {})
    )
    with torch.no_grad():
        found = kernels.add_correction(theirs.clone(), query, key, value, subjects, heads=heads, plain=plain)
    assert torch.equal(found, expected)
    before = theirs.clone()
    query.requires_grad_()  # nothing is written over that a gradient needs
    found = kernels.add_correction(theirs, query, key, value, subjects, heads=heads, plain=plain)
    assert torch.equal(found, expected)
    assert torch.equal(theirs, before)
    with torch.no_grad():
        kernels.add_correction(theirs, query, key, value, subjects, heads=heads, plain=False)
    assert torch.equal(theirs, before)  # another pack's output is its own
