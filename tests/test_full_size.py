"""Encoder files of the published size, one a layout: 70 layers, 1024 queries, about 0.9 GB in fp16.

One layout by default, which takes most of a minute; NESTED_ATTENTION_FULL_SIZE=1 runs all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from synthetic_checkpoints import FULL, encoder_tensors, write
from test_checkpoint import cost_of_loading, needs_proc

from nested_attention.attention import BoundSubject, check_subjects, nested_cross_attention
from nested_attention.checkpoint import load_subject_encoder, save_subject_encoder
from nested_attention.encoder import SubjectEncoder, SubjectEncoderConfig, site_key
from nested_attention.sites import sdxl_sites

ALL = os.environ.get("NESTED_ATTENTION_FULL_SIZE") == "1"


def foreign(naming: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tensors = encoder_tensors(naming, sizes=FULL, sites=sdxl_sites(), dtype=torch.float16)
        return write(folder / "encoder.safetensors", tensors)

    return make


def our_own(folder: Path) -> Path:
    with torch.device("meta"):
        encoder = SubjectEncoder(SubjectEncoderConfig())
    generator = torch.Generator().manual_seed(0)
    state = {
        name: (torch.randn(tensor.shape, generator=generator) / tensor.shape[-1] ** 0.5).half()
        for name, tensor in encoder.state_dict().items()
    }
    encoder.load_state_dict(state, assign=True)
    save_subject_encoder(encoder, folder / "encoder.safetensors")
    return folder / "encoder.safetensors"


LAYOUTS = {
    "as the paper's release may be": foreign("training dump"),
    "as IP-Adapter is published": foreign("published"),
    "our own": our_own,
    "by path": foreign("by path"),
}
DEFAULT = "as the paper's release may be"


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS if ALL else [DEFAULT])
def test_a_full_size_file_loads_in_place_and_drives_a_layer(
    layout: str, tmp_path: Path, closing_line: Callable[[str], None]
) -> None:
    path = LAYOUTS[layout](tmp_path)
    size = path.stat().st_size
    costs = cost_of_loading([(path, "dict()"), (path, "dict(dtype=torch.bfloat16)")], tmp_path)
    as_it_is, cast = costs
    assert 0.9 * size < as_it_is[0] < 1.1 * size  # the file, once
    assert 0.5 * size < cast[0] < 1.3 * size
    assert max(seconds for _, seconds in costs) < 20
    encoder = load_subject_encoder(path)
    assert encoder.config == SubjectEncoderConfig()  # the paper's sizes and SDXL's sites, all recognised
    assert {p.dtype for p in encoder.parameters()} == {torch.float16}
    drive_a_layer(encoder)
    path.unlink()
    peak, seconds = as_it_is
    cost = f"read in {seconds:.1f} s of one core, peak {peak / size:.2f} × the file"
    more = "" if ALL else "; NESTED_ATTENTION_FULL_SIZE=1 tries the other layouts"
    closing_line(f"Full-size encoder, {layout}: {size / 1e9:.2f} GB {cost}{more}.")


def drive_a_layer(encoder: SubjectEncoder) -> None:
    """1024 tokens in SDXL's widest layer, from the file's own projections."""
    site = encoder.config.sites[-1]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, encoder.config.num_queries, encoder.config.token_dim, generator=generator)
    project = encoder.projections[site_key(site.name)].float()
    with torch.no_grad():
        key, value = project(tokens)
    assert key.shape == value.shape == (1, 1024, 1280)
    query, text_key, text_value = (torch.randn(2, n, 1280, generator=generator) for n in (1024, 77, 77))
    mask = torch.zeros(2, 77, dtype=torch.bool)
    mask[1, 5] = True
    subject = BoundSubject(key=key, value=value, mask=mask)
    check_subjects([subject], 2, 77)
    heads = site.inner_dim // 64
    out = nested_cross_attention(query, text_key, text_value, [subject], heads=heads)
    plain = nested_cross_attention(query, text_key, text_value, [], heads=heads)
    assert out.isfinite().all()
    assert torch.equal(out[0], plain[0])
    assert (out[1] - plain[1]).abs().max() > 1e-2
