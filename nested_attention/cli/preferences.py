"""`nested-attention preferences`: two evaluations compared by people who do not know which is which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .stopping import stopping

preferences = typer.Typer(
    help="Have people compare two evaluations' pictures, blind, and count their answers.",
    no_args_is_help=True,
)


@preferences.command()
def page(
    first: Annotated[Path, typer.Argument(help="An evaluation's folder: A.")],
    second: Annotated[Path, typer.Argument(help="Another one's, of the same prompts and subjects: B.")],
    out: Annotated[Path, typer.Option(help="Where the page goes; its key goes beside it.")] = Path(
        "output/preferences.html"
    ),
    number: Annotated[int, typer.Option(min=1, help="Pairs on the page.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Which pairs are chosen, where there are more.")] = 0,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Write over a page and its key: its answers can be counted no more."),
    ] = False,
) -> None:
    """Write a page of pairs, in one file that can be sent to anybody, and the key to it."""
    from ..errors import NestedAttentionError
    from ..evaluation.figures import read_figures
    from ..evaluation.preferences import pairs_of, write_preferences
    from ..evaluation.run import write

    with stopping():
        there = [path for path in (out, _key(out)) if path.exists()]
        if there and not replace:
            raise NestedAttentionError(
                f"{there[0]} is there already, and answers to a page are counted with its own key alone. "
                "Choose another name with --out, or say --replace if nobody has been asked yet"
            )
        before, after = read_figures(first), read_figures(second)
        chosen = pairs_of(before, after, number, seed)
        text, key = write_preferences(chosen, (before["title"], after["title"]))
        out.parent.mkdir(parents=True, exist_ok=True)
        write(_key(out), json.dumps(key, indent=1) + "\n")  # first: a page without its key is lost work
        write(out, text)
    typer.echo(
        f"The page, with {len(chosen)} pairs: {out.resolve()}\n"
        f"The key, which nobody who answers should see: {_key(out).resolve()}"
    )


@preferences.command()
def count(
    key: Annotated[Path, typer.Argument(help="The key of the page.")],
    answers: Annotated[list[Path], typer.Argument(help="The files that people have downloaded.")],
) -> None:
    """Count the answers: how often A was preferred to B, with intervals."""
    from ..evaluation.preferences import QUESTIONS, count_preferences, read_answers, read_key

    with stopping():
        found = count_preferences(read_key(key), [read_answers(path) for path in answers])
    typer.echo(f"A: {found['A']}\nB: {found['B']}\npeople: {found['people']}")
    for question in QUESTIONS:
        wins, neither = found[question]["wins_of_a"], found[question]["neither"]
        if wins is None:
            typer.echo(f"{question:9} no answer for either ({neither} saw no difference)")
            continue
        low, high, rate = (100 * wins[name] for name in ("low", "high", "rate"))
        typer.echo(
            f"{question:9} A preferred in {rate:.0f} % ({low:.0f}–{high:.0f} %) of {wins['trials']} answers, "
            f"{neither} saw no difference"
        )


def _key(page: Path) -> Path:
    return page.with_suffix(".key.json")
