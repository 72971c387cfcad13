"""What the paper says, as differences between two drawings that figures agree with or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ....training.mechanisms import mechanism
from .drawings import EXPRESSION
from .matrix import (
    COUNTS,
    PAIRED,
    PERSON,
    PET,
    QUERIES,
    REFERENCES,
    Drawing,
    Run,
    asked_of,
)

Sign = Literal["higher", "lower"]


@dataclass(frozen=True)
class Shown:
    """A drawing of a run, and of the runs of other seeds. drawing: None is the one at the value of the
    control that was chosen on the development cases, or whose identity is nearest to that of `like`. label:
    what it is called beside the other one."""

    run: Run
    drawing: Drawing | None
    label: str
    like: Shown | None = None


@dataclass(frozen=True)
class Claim:
    """The first one's measure is higher or lower than the second one's.

    question: of the matrix. figure: of the paper; empty where the paper does not say so and nothing is
    expected. says: in plain words. measure: of `measures.MEASURES`. second: None compares with chance, 1/2.
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
    (EXPRESSION, "lower", "A larger λ follows expressions less."),
)
AS_TRAINED: tuple[tuple[str, str, Sign, str], ...] = (
    (
        "decoupled",
        "prompt",
        "higher",
        "Decoupled CA follows the prompt less than nested attention.",
    ),
    ("decoupled", "style", "higher", "Decoupled CA follows styles less than nested attention."),
    ("decoupled", "outside", "lower", "Decoupled CA at full scale changes more outside the subject."),
    ("simple", "prompt", "higher", "The simple adapter follows the prompt less than nested attention."),
    ("simple", "style", "higher", "The simple adapter follows styles less than nested attention."),
    ("simple", EXPRESSION, "higher", "The simple adapter follows expressions less than nested attention."),
    ("simple", "clothes", "higher", "The simple adapter follows clothing less than nested attention."),
)
"""What nested attention as trained is beside an alternative, and what the paper says of that."""
PREDICTION = "The prediction of held-out drawings."
CONTRASTS = (("man", "woman", "Figure 15"), ("woman", "man", "Figure 15"), ("child", "man", "Figure 15"),
             ("girl", "woman", "Figure 15"), ("boy", "man", ""))  # fmt: skip
"""Nouns beside another that the subject is attached to as well. The paper shows no boy."""


def _at(name: str, value: float | None, label: str = "") -> Shown:
    """A mechanism at a value of its control; None: at the chosen one."""
    drawing = None if value is None else Drawing(value=value)
    return Shown(Run(mechanism=name), drawing, label or mechanism(name).title)


def _error(name: str) -> Shown:
    return Shown(Run(mechanism=name), Drawing("error"), mechanism(name).title)


def _mechanisms() -> list[Claim]:
    best = [
        Claim(
            "mechanisms",
            TRADE_OFF,
            f"{mechanism(name).title} keeps less of the identity than nested attention at the base model's "
            "prompt fidelity.",
            _at("nested", None),
            _at(name, None),
            "identity",
            "higher",
        )
        for name in ALTERNATIVES
    ]
    nested, section = _at("nested", 1.0), "Section 5.2 and Appendix B"
    trained = [
        Claim("mechanisms", section, says, nested, _at(name, 1.0), measure, expected)
        for name, measure, expected, says in AS_TRAINED
    ]
    alike = replace(_at("decoupled", None), like=nested)
    outside = "Decoupled CA at the scale of equal identity changes more outside the subject."
    easier = (
        "Global V, easier to optimise than multiple tokens, predicts held-out drawings better after as many "
        "steps."
    )
    far, near = _at("nested", 4.0, "λ = 4"), _at("nested", 1.0, "λ = 1")
    compared: tuple[tuple[str, Shown, Shown, str], ...] = (
        ("Expressions, as trained.", nested, _at("decoupled", 1.0), EXPRESSION),
        (
            "Expressions, where each is taken for the trade-off.",
            _at("nested", None),
            _at("decoupled", None),
            EXPRESSION,
        ),
        ("Identity, as trained.", _at("global", 1.0), _at("multiple", 1.0), "identity"),
        *((PREDICTION, _error("nested"), _error(name), "error") for name in ("global", "decoupled")),
    )
    return [
        *best,
        *trained,
        Claim("mechanisms", section, outside, nested, alike, "outside", "lower"),
        Claim("mechanisms", "Appendix B", easier, _error("global"), _error("multiple"), "error", "lower"),
        *(
            Claim("mechanisms", "Section 5.1 and Figure 8", says, far, near, measure, expected)
            for measure, expected, says in LARGER
        ),
        *(
            Claim("mechanisms", "", says, first, second, measure, None)
            for says, first, second, measure in compared
        ),
    ]


def _pairs() -> list[Claim]:
    def shown(name: str, number: int) -> Shown:
        control = mechanism(name).control
        value = PAIRED[name][number]
        label = f"{mechanism(name).title} ({control.symbol} = {value:g})" if control else ""
        return Shown(Run(mechanism=name, words=(PET,)), Drawing("pair", PET, value), label)

    def alone(name: str) -> Shown:
        return Shown(
            Run(mechanism=name, words=(PET,)), Drawing("alone", PET), f"{mechanism(name).title}, a pet"
        )

    nested, full, less = shown("nested", 0), shown("decoupled", 0), shown("decoupled", 1)
    told: tuple[tuple[str, Sign, str], ...] = (
        ("each", "higher", "A person and a pet are recognised more often than with decoupled CA."),
        ("prompt", "higher", "Their prompt is followed better than with decoupled CA."),
        ("outside", "lower", "Less of the picture outside the two changes than with decoupled CA."),
    )
    compared: tuple[tuple[str, Shown, Shown, str], ...] = (
        ("At a lower scale.", nested, less, "each"),
        ("At a lower scale.", nested, less, "outside"),
        ("A pet alone.", alone("nested"), alone("decoupled"), "identity"),
        ("A pet alone.", alone("nested"), alone("decoupled"), "outside"),
    )
    return [
        *(
            Claim("pair", "Figure 12", says, nested, full, measure, expected)
            for measure, expected, says in told
        ),
        *(Claim("pair", "", says, first, second, measure, None) for says, first, second, measure in compared),
    ]


def _alphas() -> list[Claim]:
    def shown(alpha: float | None) -> Shown:
        label = "without regularisation" if alpha is None else f"α = {alpha:g}"
        return Shown(replace(NESTED, alpha=alpha), Drawing(), label)

    told: tuple[tuple[float | None, str, Sign, str], ...] = (
        (None, "outside", "higher", "Without regularisation, less of the base model's picture is kept."),
        (1.0, "identity", "lower", "α = 1 keeps less of the identity than α = 2."),
        (3.0, "identity", "higher", "α = 3 keeps more of the identity than α = 2."),
        (3.0, "outside", "higher", "α = 3 keeps less of the base model's picture than α = 2."),
    )
    return [
        *(
            Claim("alpha", "Figure 17", says, shown(alpha), shown(2.0), measure, expected)
            for alpha, measure, expected, says in told
        ),
        *(
            Claim("alpha", "", says, shown(None), shown(2.0), measure, None)
            for measure, says in (
                ("identity", "Identity without regularisation."),
                ("prompt", "The prompt without regularisation."),
            )
        ),
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
            for number in REFERENCES
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
                figure,
                f"On “{noun}”, the picture fits that noun more than on “{other}”.",
                Shown(NESTED, Drawing("noun", noun=noun), noun),
                Shown(NESTED, Drawing("noun", noun=other), other),
                f"fits {noun}",
                "higher" if figure else None,
            )
            for noun, other, figure in CONTRASTS
        ),
        *(
            Claim(
                "nouns",
                figure,
                f"On “{noun}”, it is the subject still.",
                Shown(NESTED, Drawing("noun", noun=noun), noun),
                None,
                "own",
                "higher" if figure else None,
            )
            for noun, _, figure in CONTRASTS
        ),
    ]


def _scratch() -> list[Claim]:
    def shown(name: str, drawing: Drawing) -> Shown:
        return Shown(Run(mechanism=name, scratch=True), drawing, f"{mechanism(name).title} from scratch")

    nested, error = shown("nested", Drawing()), Drawing("error")
    keeps = "From scratch too, {} keeps less of the identity than nested attention."
    return [
        *(
            Claim(
                "scratch",
                TRADE_OFF,
                keeps.format(mechanism(name).title),
                nested,
                shown(name, Drawing()),
                "identity",
                "higher",
            )
            for name in ALTERNATIVES
        ),
        *(
            Claim("scratch", "", PREDICTION, shown("nested", error), shown(name, error), "error", None)
            for name in ALTERNATIVES
        ),
        Claim(
            "scratch",
            "",
            "What reading and whitening bring.",
            _at("nested", 1.0, "with both"),
            nested,
            "identity",
            None,
        ),
    ]


def _beyond() -> list[Claim]:
    together = Run(words=(PERSON, PET))
    found = [
        Claim(
            "domains",
            "",
            f"One encoder for both, against one for each: {kind}.",
            Shown(together, Drawing(word=word), "one for both"),
            Shown(Run(words=(word,)), Drawing(word=word), "one for each"),
            "identity",
            None,
        )
        for word, kind in ((PERSON, "people"), (PET, "pets"))
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
    *_mechanisms(), *_pairs(), *_alphas(), *_queries(), *_applications(), *_scratch(), *_beyond()
)  # fmt: skip
"""In the order of the matrix's questions."""


def seeds_of(claim: Claim) -> Sequence[int]:
    """The seeds that a claim is asked of: those of its question's runs."""
    return sorted({run.seed for run, _ in asked_of(claim.question)})
