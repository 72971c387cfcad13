"""Malformed inputs end in our own error or a correct result: no crash, no hang, no stray file, no code run.

NESTED_ATTENTION_MALFORMED sets how many there are in all; the closing line says how many there were.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from malformed import KINDS

from nested_attention.errors import NestedAttentionError

TOTAL = int(os.environ.get("NESTED_ATTENTION_MALFORMED", "10000"))
LONGEST_S = 20

_counts: dict[str, tuple[int, int]] = {}


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """An error in place of a hang, where the system has alarms."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer in {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_the_shares_are_shares() -> None:
    assert sum(share for share, _ in KINDS.values()) == 100


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", KINDS)
def test_malformed_inputs_are_refused_or_read_correctly(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("models", "input", "output", "elsewhere"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    share, prepare = KINDS[kind]
    case = prepare(tmp_path / "models")
    before = tree(tmp_path)
    refused = 0
    cases = max(1, TOTAL * share // 100)
    slowest = 0.0
    for number in range(cases):
        start = time.monotonic()
        try:
            with limited(LONGEST_S):
                case(random.Random(f"{kind} {number}"))
        except NestedAttentionError as error:
            refused += 1
            assert str(error)
        except BaseException as error:
            raise AssertionError(f"{kind}, number {number}: {type(error).__name__}: {error}") from error
        slowest = max(slowest, time.monotonic() - start)
    written = {path for path in tree(tmp_path) - before if not path.startswith("output")}
    assert written <= {"models/case.bin", "models/case.safetensors", "models/case.pt", "models/case.json"}
    assert refused > 0.2 * cases, "hardly anything was malformed: the test tests nothing"
    _counts[kind] = (cases, refused)
    print(f"{kind}: {cases} inputs, {refused} refused, the slowest took {slowest:.2f} s")


def test_all_kinds_were_counted(closing_line: Callable[[str], None]) -> None:
    if len(_counts) < len(KINDS):
        pytest.skip("only some kinds were asked for")
    total, refused = (sum(column) for column in zip(*_counts.values(), strict=True))
    assert total >= min(TOTAL, 2000)
    more = "" if total >= 10000 else "; NESTED_ATTENTION_MALFORMED=10000 tries all"
    closing_line(f"{total} malformed inputs: {refused} refused, {total - refused} correct{more}.")
