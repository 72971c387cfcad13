"""`accelerate launch -m nested_attention.training CONFIG`: `nested-attention train` in several processes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import NestedAttentionError
from .run import train_from


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nested_attention.training", description=__doc__)
    parser.add_argument("config", type=Path, help="a configuration of `nested-attention train`")
    parser.add_argument(
        "--resume", choices=("latest", "never"), default="latest", help="never: only a new run"
    )
    given = parser.parse_args(arguments)
    try:
        train_from(given.config, resume=given.resume)
    except NestedAttentionError as error:
        print(f"nested-attention: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
