"""Run by test_fused.py in a process of its own, where Triton interprets its kernels on the CPU."""

from __future__ import annotations

from dataclasses import replace

import torch
from conftest import ROOT  # noqa: F401  makes the library importable
from explicit import explicit_nested_attention
from test_attention import make_text, one_subject

from nested_attention.attention import nested_cross_attention, subject_correction
from nested_attention.kernels import chunks, fused


def check(name: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    off = float((found.double() - expected.double()).abs().max()) / float(expected.abs().max())
    assert off <= tolerance, f"{name}: off by {off:.2g} of the largest"
    print(f"{name}: {off:.1e}")


def main() -> None:
    cases = {
        "one": [{}],
        "alpha none, strength": [{"alpha": None, "strength": 0.4}],
        "per head": [{"norm": "head", "size": 70}],
        "bias": [
            {"token_bias": torch.linspace(-1, 1, 70).index_fill(0, torch.tensor([3]), -torch.inf), "size": 70}
        ],
        "two subjects": [{"rows": [0, 2]}, {"token": 5, "alpha": 1.0}],
    }
    for text in (7, 131):  # within a block of text tokens, and beyond
        query, key, value, heads = make_text(3, 70, text, 2, 16)
        for name, options in cases.items():
            subjects = [one_subject(key, **one) for one in options]
            found = fused.fused_correction(query, key, value, subjects, heads=heads)
            expected = subject_correction(query, key, value, subjects, heads=heads)
            check(f"correction, {name}, {text}", found, expected, 1e-5)
            for scale in (0.5, 1.0, 2.0):
                scaled = [replace(s, attention_scale=scale) for s in subjects]
                found = fused.fused_nested(query, key, value, scaled, heads=heads)
                check(
                    f"nested, {name}, {text}, λ {scale}",
                    found,
                    explicit_nested_attention(query, key, value, scaled, heads=heads),
                    1e-5,
                )
        half = [x.half() for x in (query, key, value)]  # the interpreter cannot multiply bfloat16
        subject = one_subject(key, size=70)
        found = fused.fused_nested(*half, [subject], heads=heads)
        assert found.dtype == torch.float16
        check("fp16", found, nested_cross_attention(*half, [subject], heads=heads), 4e-3)

    query, key, value, heads = make_text(1, 9, 7, 2, 16)
    scaled = one_subject(key, attention_scale=2.0)
    region = one_subject(key, region=torch.rand(1, 9))
    assert not fused.supports(query, [region], heads)
    for subject in (scaled, region):  # by the reference
        found = fused.fused_correction(query, key, value, [subject], heads=heads)
        assert torch.equal(found, chunks.correction(query, key, value, [subject], heads=heads))
    print("all agree")


if __name__ == "__main__":
    main()
