"""`nested-attention prepare` and `nested-attention train`: a subject encoder of one's own."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .stopping import needing_training


class Resume(str, Enum):
    """What is done where a run has checkpoints."""

    LATEST = "latest"
    NEVER = "never"


def prepare(
    config: Annotated[
        Path, typer.Argument(help="What is prepared, as YAML: docs/training.md says what it holds.")
    ],
) -> None:
    """Encode photographs and captions once, into the shards that training reads."""
    with needing_training():
        from ..training.prepare.run import prepare_from

        prepare_from(config, typer.echo)


def train(
    config: Annotated[
        Path, typer.Argument(help="What is trained, as YAML: docs/training.md says what it holds.")
    ],
    resume: Annotated[
        Resume, typer.Option(help="latest: go on where a run was stopped; never: only begin a new one.")
    ] = Resume.LATEST,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check shapes, say what memory and time it takes, and end."),
    ] = False,
) -> None:
    """Train a subject encoder on prepared shards, in one process (docs/training.md: several)."""
    with needing_training():
        from ..training.run import dry_run_from, train_from

        if dry_run:
            dry_run_from(config, typer.echo)
            return
        train_from(config, resume=resume.value, say=typer.echo)
