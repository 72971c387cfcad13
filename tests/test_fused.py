"""The Triton kernels, interpreted on the CPU and compiled for a GPU; both in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_attention import make_text, one_subject

from nested_attention import kernels
from nested_attention.errors import NestedAttentionError
from nested_attention.kernels import chunks

HERE = Path(__file__).parent

COMPILE = """
import conftest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nested_attention.kernels import fused

half, single = "*fp16", "*fp32"
pointers = {name: half for name in ("q", "k", "v", "nested_key", "nested_value", "star")}
pointers |= {name: single for name in ("bias", "coefficient", "goal", "lam", "out", "squares", "pulls")}
constants = {"HAS_BIAS": True, "SIZE": 64, "BL": fused.QUERIES, "BN": fused.TOKENS, "BT": fused.TEXT}
constants |= {"REGULAR": True, "INNER": True}
scalars = {"scale": "fp32", "epsilon": "fp32"}
for kernel in (fused._attend, fused._add):
    here = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {
        name: "constexpr" if name in here else pointers.get(name, scalars.get(name, "i32"))
        for name in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=here)
    done = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert done.metadata.shared <= 48 * 1024, done.metadata.shared
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
def test_the_kernels_compute_what_the_reference_does() -> None:
    assert run("fused_against_reference.py", TRITON_INTERPRET="1").endswith("all agree\n")


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu_and_fit_its_shared_memory() -> None:
    assert run("-c", COMPILE) == "compiled\n"


class TestBackend:
    @pytest.mark.parametrize("chosen", ["torch", "fused"])
    def test_on_a_cpu_it_is_the_reference(self, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
        monkeypatch.setattr(kernels, "BACKEND", chosen)
        query, key, value, heads = make_text(2, 9, 7, 2, 8)
        subjects = [one_subject(key, attention_scale=2.0)]
        for run_, reference in (
            (kernels.nested, chunks.nested),
            (kernels.correction, chunks.correction),
        ):
            found = run_(query, key, value, subjects, heads=heads)
            assert torch.equal(found, reference(query, key, value, subjects, heads=heads))

    def test_another_name_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernels, "BACKEND", "flash")
        query, key, value, heads = make_text(2, 9, 7, 2, 8)
        with pytest.raises(NestedAttentionError, match="BACKEND is 'flash'; expected one of torch, fused"):
            kernels.correction(query, key, value, [one_subject(key)], heads=heads)
