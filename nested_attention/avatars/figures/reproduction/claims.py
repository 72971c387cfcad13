"""What the paper says, as differences between two drawings that figures agree with or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ....training.mechanisms import mechanism
from .drawings import EXPRESSION
from .matrix import (
    COUNTS,
    NOUNS,
    PAIRED,
    PERSON,
    PET,
    QUERIES,
    QUESTIONS,
    Drawing,
    Run,
)

Sign = Literal["higher", "lower"]


@dataclass(frozen=True)
class Shown:
    """A drawing of a run, and of the runs of other seeds. drawing: None is the one at the value of the
    control that was chosen on the development cases. label: what it is called beside the other one."""

    run: Run
    drawing: Drawing | None
    label: str


@dataclass(frozen=True)
class Claim:
    """The first one's measure is higher or lower than the second one's.

    question: of the matrix. figure: of the paper; empty where the paper says nothing and nothing is
    expected. says: in plain words. measure: of `findings.MEASURES`. second: None compares with chance, 1/2.
    """

    question: str
    figure: str
    says: str
    first: Shown
    second: Shown | None
    measure: str
    expected: Sign | None


NESTED = Run()
TRADE_OFF = "Figures 9, 10 and 16"
ALTERNATIVES = ("decoupled", "simple", "global", "multiple")
LARGER: tuple[tuple[str, Sign, str], ...] = (
    ("identity", "higher", "A larger λ keeps more of the identity."),
    ("prompt", "lower", "A larger λ follows the prompt less."),
)
AS_TRAINED: tuple[tuple[str, str, Sign, str], ...] = (
    (
        "decoupled",
        "prompt",
        "higher",
        "Decoupled CA follows the prompt less than nested attention.",
    ),
    ("decoupled", "style", "higher", "Decoupled CA follows styles less than nested attention."),
    ("decoupled", "outside", "lower", "Decoupled CA changes more outside the subject than nested attention."),
    ("simple", "prompt", "higher", "The simple adapter follows the prompt less than nested attention."),
    ("simple", "style", "higher", "The simple adapter follows styles less than nested attention."),
    ("simple", EXPRESSION, "higher", "The simple adapter follows expressions less than nested attention."),
)
"""What nested attention as trained is beside an alternative, and what the paper says of that."""


def _at(name: str, value: float | None, label: str = "") -> Shown:
    """A mechanism at a value of its control; None: at the chosen one."""
    drawing = None if value is None else Drawing(value=value)
    return Shown(Run(mechanism=name), drawing, label or mechanism(name).title)


def _mechanisms() -> list[Claim]:
    best = [
        Claim(
            question="mechanisms",
            figure=TRADE_OFF,
            says=f"{mechanism(name).title} keeps less of the identity than nested attention at the base "
            "model's prompt fidelity.",
            first=_at("nested", None),
            second=_at(name, None),
            measure="identity",
            expected="higher",
        )
        for name in ALTERNATIVES
    ]
    nested, section = _at("nested", 1.0), "Section 5.2 and Appendix B"
    trained = [
        Claim("mechanisms", section, says, nested, _at(name, 1.0), measure, expected)
        for name, measure, expected, says in AS_TRAINED
    ]
    optimised = "Multiple tokens, which are harder to optimise, keep less of the identity than global V."
    one, many = _at("global", 1.0), _at("multiple", 1.0)
    errors = [
        Shown(Run(mechanism=name), Drawing("error"), mechanism(name).title) for name in ("nested", "global")
    ]
    followed = "Expressions, which the paper does not name here: followed as with decoupled CA."
    predicted = "Query-dependent values predict held-out drawings better than one value."
    far, near = _at("nested", 4.0, "λ = 4"), _at("nested", 1.0, "λ = 1")
    return [
        *best,
        *trained,
        Claim("mechanisms", "Appendix B", optimised, one, many, "identity", "higher"),
        *(
            Claim("mechanisms", "Section 5.1 and Figure 8", says, far, near, measure, expected)
            for measure, expected, says in LARGER
        ),
        Claim("mechanisms", "", followed, nested, _at("decoupled", 1.0), EXPRESSION, None),
        Claim("mechanisms", "", predicted, errors[0], errors[1], "error", None),
    ]


def _pairs() -> list[Claim]:
    told: tuple[tuple[str, Sign, str], ...] = (
        ("identity", "higher", "A person and a pet are both recognised more often than with decoupled CA."),
        ("prompt", "higher", "Their prompt is followed better than with decoupled CA."),
        ("outside", "lower", "Less of the picture outside the two changes than with decoupled CA."),
    )
    nested, decoupled = (
        Shown(
            Run(mechanism=name, words=(PET,)),
            Drawing("pair", PET, PAIRED[name][0]),
            mechanism(name).title,
        )
        for name in ("nested", "decoupled")
    )
    return [
        Claim("pair", "Figure 12", says, nested, decoupled, measure, expected)
        for measure, expected, says in told
    ]


def _alphas() -> list[Claim]:
    def shown(alpha: float | None) -> Shown:
        label = "without regularisation" if alpha is None else f"α = {alpha:g}"
        return Shown(replace(NESTED, alpha=alpha), Drawing(), label)

    told: tuple[tuple[float | None, str, Sign, str], ...] = (
        (None, "outside", "higher", "Without regularisation, less of the base model's picture is kept."),
        (None, "prompt", "lower", "Without regularisation, the prompt is followed less."),
        (1.0, "identity", "lower", "α = 1 keeps less of the identity than α = 2."),
        (3.0, "identity", "higher", "α = 3 keeps more of the identity than α = 2."),
        (3.0, "outside", "higher", "α = 3 keeps less of the base model's picture than α = 2."),
    )
    return [
        Claim("alpha", "Figure 17", says, shown(alpha), shown(2.0), measure, expected)
        for alpha, measure, expected, says in told
    ]


def _queries() -> list[Claim]:
    def shown(number: int) -> Shown:
        return Shown(replace(NESTED, queries=number), Drawing(), f"{number} queries")

    pairs = [(COUNTS[-1], number) for number in COUNTS[:-1]] + [(QUERIES, COUNTS[0])]
    return [
        Claim(
            "queries",
            "Figure 18 and Appendix C",
            f"More learned queries keep more of the identity: {more} against {fewer} here.",
            shown(more),
            shown(fewer),
            "identity",
            "higher",
        )
        for more, fewer in pairs
    ]


def _applications() -> list[Claim]:
    one = Shown(NESTED, Drawing(), "one picture")
    both = Shown(NESTED, Drawing("mixed", value=0.5), "mixed")
    neither = Shown(NESTED, Drawing("mixed", value=0), "not mixed")
    return [
        *(
            Claim(
                "references",
                "Figure 13",
                f"{number} pictures of a subject keep more of it than one.",
                Shown(NESTED, Drawing("references", value=number), f"{number} pictures"),
                one,
                "identity",
                "higher",
            )
            for number in (2, 4)
        ),
        Claim(
            "mixing",
            "Figure 14",
            "A mixture resembles both people.",
            both,
            neither,
            "both",
            "higher",
        ),
        *(
            Claim(
                "nouns",
                "Figure 15",
                f"On “{noun}”, the picture moves towards that noun.",
                Shown(NESTED, Drawing("noun", noun=noun), noun),
                None,
                "moved",
                "higher",
            )
            for noun in NOUNS
        ),
    ]


def _beyond() -> list[Claim]:
    together = Run(words=(PERSON, PET))
    found = [
        Claim(
            "domains",
            "",
            f"One encoder for both, against one for each: {word}s.",
            Shown(together, Drawing(word=word), "one for both"),
            Shown(Run(words=(word,)), Drawing(word=word), "one for each"),
            "identity",
            None,
        )
        for word in (PERSON, PET)
    ]
    told = {
        "weights": "Loss weights by what a cell shows",
        "timesteps": "Timesteps denser at high noise",
    }
    for name, label in told.items():
        first = Shown(replace(NESTED, departures=(name,)), Drawing(), f"with {name}")
        plain = Shown(NESTED, Drawing(), "the paper's loss")
        for measure in ("identity", "prompt"):
            found.append(Claim("losses", "", f"{label}: {measure}.", first, plain, measure, None))
    return found


CLAIMS: tuple[Claim, ...] = (
    *_mechanisms(), *_pairs(), *_alphas(), *_queries(), *_applications(), *_beyond()
)  # fmt: skip
"""In the order of the matrix's questions."""


def seeds_of(claim: Claim) -> Sequence[int]:
    """The seeds that a claim is asked of: those of its question's runs."""
    (asked,) = (question.asked for question in QUESTIONS if question.key == claim.question)
    return sorted({run.seed for run, _ in asked})
