"""`accelerate launch -m nested_attention.training CONFIG`: `nested-attention train` in several processes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import NestedAttentionError
from .run import dry_run_from, train_from


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nested_attention.training", description=__doc__)
    parser.add_argument("config", type=Path, help="a configuration of `nested-attention train`")
    parser.add_argument(
        "--resume", choices=("latest", "never"), default="latest", help="never: only a new run"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what memory and time it takes, and end")
    given = parser.parse_args(arguments)
    try:
        if given.dry_run:
            dry_run_from(given.config)
        else:
            train_from(given.config, resume=given.resume)
    except NestedAttentionError as error:
        print(f"nested-attention: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
