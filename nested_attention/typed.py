"""Lists of numbers as people type them, in nodes and on the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def read_numbers(text: str, kind: Callable[[str], Number]) -> list[Number] | None:
    """Numbers between commas, semicolons, spaces or lines, such as `1, 0.5; 2`; empty if nothing was typed.

    kind: int or float. None if one of them is no number of that kind, or not finite.
    """
    try:
        numbers = [kind(part) for part in re.split(r"[\s,;]+", text) if part]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None
