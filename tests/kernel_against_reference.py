"""Run by test_kernels.py in a process of its own, where Triton interprets the kernel on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import conftest  # noqa: F401  makes the library importable
import torch
from explicit import explicit_nested_attention
from launches import Launches
from test_attention import make_case, make_text, one_subject
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from nested_attention import kernels
from nested_attention.attention import BoundSubject, nested_cross_attention, plain_attention
from nested_attention.kernels import epilogue
from nested_attention.kernels.rows import read_rows

CPU = torch.device("cpu")


def off(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest value."""
    return float((found.double() - expected.double()).abs().max()) / float(expected.abs().max())


def on_kernel(q: Tensor, k: Tensor, v: Tensor, subjects: list[BoundSubject], heads: int) -> Tensor:
    out = plain_attention(q, k, v, heads=heads)
    rows = read_rows(subjects, CPU)
    return epilogue.add_correction(out, q, k, v, subjects, heads=heads, rows=rows)


def random_cases() -> None:
    """Every field of BoundSubject, one and two subjects, in fp32: to the last digits."""
    seen = worst = 0
    for seed in range(90):
        query, key, value, heads, subjects = make_case(seed)
        if all(isinstance(group.rows, slice) for group in read_rows(subjects, CPU).groups if group.carried):
            expected = explicit_nested_attention(query, key, value, subjects, heads=heads)
            worst = max(worst, off(on_kernel(query, key, value, subjects, heads), expected))
            seen += any(s.strength and s.mask.any() for s in subjects)
    assert seen > 40, seen
    assert worst <= 1e-5, worst


def shapes() -> None:
    """Ragged numbers of queries, text of several blocks, heads of other sizes and numbers; fp32 and fp16."""
    generator = torch.Generator().manual_seed(0)
    for length, tokens, heads, size in ((40, 131, 2, 16), (33, 77, 6, 64), (1, 300, 7, 40)):
        query, key, value, _ = make_text(2, length, tokens, heads, size)
        region = torch.rand(1, length, generator=generator)
        region[:, : length // 3] = 0
        for options in (
            {},
            {"attention_scale": 2.0, "strength": 0.4},
            {"attention_scale": 0.5, "norm": "head", "region": region},
            {"bounded": True, "region": region, "token_bias": torch.randn(70, generator=generator)},
            {"alpha": None, "region": region},
        ):
            first = one_subject(key, rows=[1], size=70, **options)
            for subjects in ([first], [first, one_subject(key, token=5, rows=[1], alpha=1.0)]):
                expected = explicit_nested_attention(query, key, value, subjects, heads=heads)
                plain = plain_attention(query, key, value, heads=heads)
                found = on_kernel(query, key, value, subjects, heads)
                assert off(found, expected) <= 1e-5, (length, options)
                assert torch.equal(found[0], plain[0])
                outside = subjects[0].region is not None and length >= 3 and len(subjects) == 1
                if outside and not subjects[0].bounded:
                    assert torch.equal(found[:, : length // 3], plain[:, : length // 3])
                half = [x.half() for x in (query, key, value)]
                reference = nested_cross_attention(*half, subjects, heads=heads)
                assert off(on_kernel(*half, subjects, heads), reference) <= 4e-3, (length, options)


def strided() -> None:
    """Views of wider tensors, and several of the text's tokens."""
    query, key, value, heads = make_text(2, 40, 20, 2, 16)
    wide = [torch.cat([x, x], dim=-1)[..., 5 : 5 + x.shape[-1]] for x in (query, key, value)]
    wide = [x.copy_(y) for x, y in zip(wide, (query, key, value), strict=True)]
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[0, [2, 9, 11]] = True
    mask[1, 4] = True
    subject = replace(one_subject(key), mask=mask)
    expected = explicit_nested_attention(query, key, value, [subject], heads=heads)
    assert off(on_kernel(*wide, [subject], heads), expected) <= 1e-5
    out = torch.zeros(2, 40, 100)[..., 3:35]
    rows = read_rows([subject], CPU)
    found = epilogue.add_correction(out, *wide, [subject], heads=heads, rows=rows)
    assert found is out
    plain = plain_attention(query, key, value, heads=heads)
    assert off(plain + out, expected) <= 1e-5


def regions() -> None:
    """Of any strides: those of one number for all places, of a transposed picture, of every other place."""
    query, key, value, heads = make_text(2, 40, 20, 2, 16)
    generator = torch.Generator().manual_seed(0)
    for region in (
        torch.full((1, 1), 0.4).expand(1, 40),
        torch.rand(40, 2, generator=generator).T,
        torch.rand(2, 80, generator=generator)[:, ::2],
    ):
        subject = one_subject(key, rows=[0, 1], region=region)
        expected = explicit_nested_attention(query, key, value, [subject], heads=heads)
        assert off(on_kernel(query, key, value, [subject], heads), expected) <= 1e-5, region.stride()


def supported() -> None:
    query, key, value, heads = make_text(2, 9, 7, 2, 16)
    half = [x.half() for x in (query, key, value)]
    subjects = [one_subject(key, attention_scale=2.0, region=torch.rand(1, 9), bounded=True)]

    def asks(text: list[Tensor], carried: list[BoundSubject] = subjects, heads: int = heads) -> bool:
        return epilogue.supports(*text, carried, heads, read_rows(carried, CPU))

    with torch.no_grad():
        assert asks(half)
        assert asks([x.bfloat16() for x in half])
        assert not asks([query, key, value])
        assert not asks([half[0], half[1].float(), half[2]])
        assert not asks([half[0].mT.contiguous().mT, *half[1:]])
        wide = make_text(2, 9, 7, 1, 256)
        assert not asks([x.half() for x in wide[:3]], [one_subject(wide[1])], 1)
        three = [x.half() for x in make_text(3, 9, 7, 2, 16)[:3]]
        assert asks(three, [one_subject(three[1], rows=[1, 2])])
        assert not asks(three, [one_subject(three[1], rows=[0, 2])])
    learned = [replace(subjects[0], value=subjects[0].value.clone().requires_grad_())]
    assert not asks(half, learned)
    with torch.no_grad():
        assert asks(half, learned)


def counted() -> None:
    """Launches of a layer: PyTorch's operations and the kernel's grids, in what hosts call."""
    grids: list[tuple[int, ...]] = []
    kernel = epilogue._add_change

    class Counted:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def run(*args: object, **options: object) -> None:
                grids.append(grid)
                with _disable_current_modes():  # the interpreter's own operations are none of a GPU's
                    kernel[grid](*args, **options)

            return run

    epilogue._add_change = Counted()  # type: ignore[assignment]
    kernels._on_device = lambda device, wanted: epilogue  # type: ignore[assignment]

    def check(options: dict[str, object]) -> None:
        query, key, value, heads = make_text(2, 32, 77, 2, 64)
        text = [x.half() for x in (query, key, value)]
        subject = one_subject(key, rows=[1], size=32, **options)
        subjects = [replace(subject, key=subject.key.half(), value=subject.value.half())]
        rows, plain = read_rows(subjects, CPU), plain_attention(*text, heads=heads)
        own = plain.clone()
        expected = nested_cross_attention(*text, subjects, heads=heads)
        runs: dict[str, tuple[int, Callable[[], Tensor]]] = {
            "on another pack's attention": (3, partial(kernels.add_correction, plain, plain=False)),
            "as a whole": (3, kernels.nested),
            "on a host's attention": (2, partial(kernels.add_correction, own, plain=True)),
        }
        epilogue.add_correction(plain.clone(), *text, subjects, heads=heads, rows=rows)  # made once for all
        for name, (most, run) in runs.items():
            grids.clear()
            with Launches() as launches:
                found = run(*text, subjects, heads=heads, rows=rows)
            assert off(found, expected) <= 4e-3, (name, options)
            assert len(grids) == 1
            assert len(launches.names) + len(grids) <= most, (name, options, launches.names)
        alone = plain + kernels.correction(*text, subjects, heads=heads, rows=rows)
        assert off(alone, expected) <= 4e-3

    check({})
    check({"attention_scale": 2.0})
    check({"region": torch.rand(1, 32), "bounded": True, "norm": "head"})
    print("launches counted")


def main() -> None:
    with torch.no_grad():
        random_cases()
        shapes()
        strided()
        regions()
    supported()
    with torch.no_grad():
        counted()
    print("all agree")


if __name__ == "__main__":
    main()
