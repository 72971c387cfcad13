"""What is trained and drawn, as data: every run, every drawing of it, and the question that asks for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ....errors import NestedAttentionError
from ....training.mechanisms import MECHANISMS, mechanism
from ...drawing.identity import KINDS
from ...models.world import Sampling

PERSON, PET = "person", "pet"
SEEDS = (0, 1, 2)
"""Of the mechanisms, and of a person with a pet; every other question is asked of the first."""
ALPHA, QUERIES = 2.0, 32
"""What every run has that is not about them."""
DEPARTURES = ("weights", "timesteps")
"""Of the small world's recipe from the paper's loss: loss weights by what a cell shows, timesteps that are
denser at high noise."""


@dataclass(frozen=True)
class Size:
    """How much of everything. The defaults are the least of a real comparison.

    steps, batch, rate: of each training; small batches, so that two cores of a CPU make a seed of all
    mechanisms in hours. reading: steps in which a Q-Former learns to read before it. pictures: of one figure,
    drawn for it of each kind of subject, beside half as many of two. cases: held-out subjects that each
    drawing shows. sampling: of what is drawn; its guidance is lower than that of the shipped workflows, as it
    is in all that is published.
    """

    steps: int = 5_000
    batch: int = 8
    rate: float = 5e-4
    reading: int = 4_000
    pictures: int = 20_000
    cases: int = 120
    sampling: Sampling = Sampling(guidance=3.0)

    @property
    def real(self) -> bool:
        """Whether it is at least the real comparison's; else a trial."""
        least = Size()
        alike = (self.batch, self.rate, self.sampling) == (least.batch, least.rate, least.sampling)
        names = ("steps", "reading", "pictures", "cases")
        numbers = [(getattr(self, name), getattr(least, name)) for name in names]
        return alike and all(own >= other for own, other in numbers)

    @property
    def development(self) -> int:
        """The first cases, by which a value of the control is chosen; figures at it are of the others."""
        return self.cases // 4


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training. What is not given is the same in every run.

    words: the kinds of subject that it learns. scratch: it begins as the paper's do, with a random Q-Former
    and keys as they are; everywhere else the Q-Former has learned to read before, and keys are whitened.
    departures: from the paper's loss, of DEPARTURES.
    """

    mechanism: str = "nested"
    words: tuple[str, ...] = (PERSON,)
    seed: int = 0
    alpha: float | None = ALPHA
    queries: int = QUERIES
    scratch: bool = False
    departures: tuple[str, ...] = ()

    @property
    def reader(self) -> str:
        """Of the Q-Former that it begins with: the same for all mechanisms."""
        return "-".join(["reading", *self.words, f"queries-{self.queries}", f"seed-{self.seed}"])

    @property
    def name(self) -> str:
        """Of its folder and its file."""
        parts = [self.mechanism, *self.words]
        if self.alpha != ALPHA:
            parts.append("alpha-none" if self.alpha is None else f"alpha-{self.alpha:g}")
        if self.queries != QUERIES:
            parts.append(f"queries-{self.queries}")
        if self.scratch:
            parts.append("scratch")
        return "-".join([*parts, *self.departures, f"seed-{self.seed}"])

    @property
    def title(self) -> str:
        """What a reader calls it, beside others of its question."""
        more = [] if self.alpha == ALPHA else [f"α {'off' if self.alpha is None else f'= {self.alpha:g}'}"]
        more += [] if self.queries == QUERIES else [f"{self.queries} queries"]
        more += ["from scratch"] if self.scratch else []
        more += [f"with {each}" for each in self.departures]
        more += [f"one encoder for {' and '.join(self.words)}"] if len(self.words) > 1 else []
        return ", ".join([mechanism(self.mechanism).title, *more])

    @property
    def partner(self) -> Run:
        """The run for people that a pet's is drawn together with."""
        return replace(self, words=(PERSON,))


@dataclass(frozen=True)
class Drawing:
    """What a trained run draws, or is measured on, over all cases.

    kind: of `drawings.KINDS`. word: the kind of subject. value: of the mechanism's control; for `references`
    their number; for `mixed` the other person's weight. noun: what the subject is attached to in place of its
    word.
    """

    kind: str = "alone"
    word: str = PERSON
    value: float = 1.0
    noun: str = ""

    @property
    def key(self) -> str:
        return " ".join([self.kind, self.word, self.noun or f"{self.value:g}"])


def words_of(drawing: Drawing) -> tuple[str, ...]:
    """The subjects of its cases."""
    return (PERSON, PET) if drawing.kind == "pair" else (drawing.word,)


def pictures_of(run: Run, drawing: Drawing) -> str:
    """The name of what a run draws."""
    return f"{run.name} {drawing.key}"


def base_pictures(words: Sequence[str]) -> str:
    """The name of what the base model draws for the cases of these subjects."""
    return f"base {' '.join(words)}"


Asked = tuple[tuple[Run, tuple[Drawing, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A part of the page: what is compared, and which runs and drawings it takes."""

    key: str
    title: str
    text: str
    asked: Asked

    @property
    def first(self) -> Asked:
        """What is asked of the runs of its first seed."""
        seed = min(run.seed for run, _ in self.asked)
        return tuple((run, drawings) for run, drawings in self.asked if run.seed == seed)


def values_of(name: str) -> tuple[float, ...]:
    """Where a mechanism's control is looked at; its only value where it has none."""
    control = mechanism(name).control
    return control.values if control else (1.0,)


def curve(name: str, word: str = PERSON) -> tuple[Drawing, ...]:
    return tuple(Drawing("alone", word, value) for value in values_of(name))


ERROR = Drawing("error")
PLAIN = (ERROR, Drawing())
PAIRED = {"nested": (1.0, 2.0), "decoupled": (1.0, 0.6)}
"""The mechanisms of the paper's Figure 12, and the values at which a person and a pet are drawn together."""
NOUNS = tuple(noun for noun in KINDS[PERSON].NOUNS if noun != PERSON)
ALPHAS: tuple[float | None, ...] = (None, 1.0, 2.0, 3.0)
COUNTS = (4, 16, QUERIES, 64)
REFERENCES = (2, 4)


def _pets(name: str) -> tuple[Drawing, ...]:
    return (Drawing("alone", PET), *(Drawing("pair", PET, value) for value in PAIRED[name]))


QUESTIONS: tuple[Question, ...] = (
    Question(
        key="mechanisms",
        title="Injection mechanisms",
        text="The paper's five mechanisms, each trained on the same pictures, noise and steps, from the same "
        "Q-Former, which has learned to read close-ups, and from random layers where a mechanism has layers. "
        "Two choices favour those that attend over the tokens, nested attention and decoupled CA: the "
        "Q-Former has learned to read through an attention over its tokens, and only such mechanisms have "
        "keys to be whitened. What is left of the differences without both is shown below, *From scratch*. "
        "The paper does not say whether the values of Global V and Multiple Tokens are regularised; here "
        "they are, as those of nested attention. Each is drawn over the values of its control that the paper "
        "looks at: λ to four times the attention, the scale of decoupled CA to 1, at which it is trained.",
        asked=tuple(
            (Run(mechanism=name, seed=seed), (ERROR, *curve(name))) for seed in SEEDS for name in MECHANISMS
        ),
    ),
    Question(
        key="pair",
        title="A person and a pet in one picture",
        text="Each kind of subject has an encoder of its own, trained alone. *Person* and *pet* are "
        "recognised among those of all cases; *identity* asks for both.",
        asked=tuple(
            (Run(mechanism=name, words=(PET,), seed=seed), _pets(name)) for seed in SEEDS for name in PAIRED
        ),
    ),
    Question(
        key="alpha",
        title="The length of the values: α",
        text="Nested attention with another α, or without regularisation, retrained. Everywhere else α is 2.",
        asked=tuple((Run(alpha=alpha), PLAIN) for alpha in ALPHAS),
    ),
    Question(
        key="queries",
        title="How many queries",
        text="Nested attention with another number of learned queries in the Q-Former, retrained. Everywhere "
        f"else there are {QUERIES}. The paper compares 16, 64, 256 and 1024 (ID scores of 0.299, 0.318, "
        "0.302 and 0.363), of which 1024 are its own.",
        asked=tuple((Run(queries=number), PLAIN) for number in COUNTS),
    ),
    Question(
        key="references",
        title="Several references",
        text="One subject from one, two and four pictures of it, the tokens concatenated; no training more.",
        asked=((Run(), (Drawing(), *(Drawing("references", value=number) for number in REFERENCES))),),
    ),
    Question(
        key="mixing",
        title="Mixing two people",
        text="The tokens of two people concatenated, of each case's and the next one's. A picture resembles "
        "somebody if it looks more like them than like a third person.",
        asked=((Run(), (Drawing("mixed", value=0), Drawing("mixed", value=0.5))),),
    ),
    Question(
        key="nouns",
        title="Semantic variations",
        text="The subject attached to another noun than it was trained on. *Fits*: how much more the "
        "picture looks like the people whom the noun fits than like the others, to the recogniser; two nouns "
        "are compared, because any noun that is not the trained one may weaken the subject. *The subject "
        "still*: it looks more like its subject than like the next case's.",
        asked=((Run(), (Drawing(), *(Drawing("noun", noun=noun) for noun in NOUNS))),),
    ),
    Question(
        key="domains",
        title="One encoder for people and pets",
        text="One encoder that learns both kinds of subject in as many steps as each of two encoders has. "
        "The paper trains one for each.",
        asked=(
            (Run(), (Drawing(),)),
            (Run(words=(PET,)), (Drawing("alone", PET),)),
            (Run(words=(PERSON, PET)), (Drawing(), Drawing("alone", PET))),
        ),
    ),
    Question(
        key="scratch",
        title="From scratch",
        text="Everywhere else a Q-Former has learned to redraw close-ups from references before it meets the "
        "UNet, and keys are trained whitened. Here nothing has been learned before and keys are as they are: "
        "the paper's own conditions, at a small part of its steps.",
        asked=((Run(), PLAIN), *((Run(mechanism=name, scratch=True), PLAIN) for name in MECHANISMS)),
    ),
    Question(
        key="losses",
        title="Beyond the paper's loss",
        text="What the small world's encoders are trained with besides, each alone added to the paper's "
        "loss, from the same start: *weights*, loss weights by what a cell shows, and *timesteps*, denser at "
        "high noise.",
        asked=(
            (Run(), PLAIN),
            *((Run(departures=(each,)), PLAIN) for each in DEPARTURES),
        ),
    ),
)


def asked_of(key: str) -> Asked:
    """What one of the questions asks."""
    (asked,) = (question.asked for question in QUESTIONS if question.key == key)
    return asked


@dataclass(frozen=True)
class Selection:
    """Which part of the matrix; empty is all of it."""

    questions: Collection[str] = ()
    mechanisms: Collection[str] = ()
    seeds: Collection[int] = ()

    def __post_init__(self) -> None:
        known: tuple[tuple[str, Collection[Any], Collection[Any]], ...] = (
            ("question", self.questions, [question.key for question in QUESTIONS]),
            ("mechanism", self.mechanisms, list(MECHANISMS)),
            ("seed", self.seeds, SEEDS),
        )
        for what, named, there in known:
            if wrong := [str(each) for each in named if each not in there]:
                raise NestedAttentionError(
                    f"no such {what}: {', '.join(wrong)}. There are {', '.join(map(str, there))}"
                )


def plan(
    selection: Selection = Selection(), questions: Sequence[Question] = QUESTIONS
) -> dict[Run, tuple[Drawing, ...]]:
    """Every run once, with all that is asked of it, in the order in which it is best made: one seed of
    everything before the next seed. A pet's run that is drawn with its partner brings the partner."""
    found: dict[Run, dict[Drawing, None]] = {}
    seeds = sorted({run.seed for question in questions for run, _ in question.asked})
    for seed in seeds:
        for question in questions:
            if selection.questions and question.key not in selection.questions:
                continue
            for run, drawings in question.asked:
                if run.seed != seed or not _selected(run, selection):
                    continue
                if any(drawing.kind == "pair" for drawing in drawings):
                    found.setdefault(run.partner, {})
                found.setdefault(run, {}).update(dict.fromkeys(drawings))
    return {run: tuple(drawings) for run, drawings in found.items()}


def _selected(run: Run, selection: Selection) -> bool:
    return (not selection.mechanisms or run.mechanism in selection.mechanisms) and (
        not selection.seeds or run.seed in selection.seeds
    )
