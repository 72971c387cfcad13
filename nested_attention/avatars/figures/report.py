"""The figures as Markdown: those of the card of the small world and of the README, from `acceptance.json`."""

from __future__ import annotations

import textwrap
from typing import Any

from ...evaluation.statistics import Mean, Rate
from .judges import NEAREST, RECOGNISER, SCORERS, SUBJECTS
from .references import HIDING, TOGETHER

_ROWS = {
    "personalised": "with the subject",
    "floor": "floor: base model, no subject",
    "described": "base model, identity described in words",
    "constant": "one value a layer, from that description",
    "ceiling": "ceiling: the true drawing through the autoencoder",
}
_SHORT = {
    "personalised": "with the subject",
    "floor": "floor",
    "described": "described",
    "constant": "one value",
    "ceiling": "ceiling",
}
TWINS = (
    "A near-twin differs in one group of traits, such as the colour of the eyes or the outline of the hair, "
    "and a caption describes it in the same words: a picture is right in every group, or some twin is nearer."
)


def percent(value: Rate) -> str:
    """A rate with its 95 % interval."""
    return f"{share(value['rate'])} ({share(value['low'])}–{share(value['high'])})"


def spread(value: Mean) -> str:
    """A mean share with its 95 % interval, where there is one."""
    if value["low"] is None or value["high"] is None:
        return share(value["mean"])
    return f"{share(value['mean'])} ({share(value['low'])}–{share(value['high'])})"


def share(value: float, digits: int = 0) -> str:
    """0.512 → 51 %"""
    return f"{100 * value:.{digits}f} %"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _both(identity: dict[str, Any], measure: str) -> list[str]:
    """A measure by each scorer, with its interval."""
    return [percent(identity[scorer][measure]) for scorer in SCORERS]


def _by_scorer(*measures: str) -> list[str]:
    return [f"{measure}: {scorer}" for measure in measures for scorer in SCORERS]


def _prompts(rows: dict[str, dict[str, Any]], labels: dict[str, str]) -> str:
    """One row an attribute of the prompt, one column a kind of picture."""
    shown = {label: rows[name]["prompt"] for name, label in labels.items() if name in rows}
    names = next(iter(shown.values()))["attributes"]
    lines = [[name, *(percent(prompt["attributes"][name]) for prompt in shown.values())] for name in names]
    balanced = ["expression, balanced", *(percent(prompt["balanced"]) for prompt in shown.values())]
    together = ["all", *(percent(prompt["all"]) for prompt in shown.values())]
    return table(["attribute", *shown], [*lines, balanced, together])


def _subject(word: str, part: dict[str, Any]) -> list[str]:
    rows = [
        [
            label,
            *(
                cell
                for measure in ("top1", "among_twins", "marks")
                for cell in _both(found["identity"], measure)
            ),
            f"{found['outside']:.1f}" if name not in ("floor", "ceiling") else "",
        ]
        for name, label in _ROWS.items()
        for found in [part[name]]
    ]
    marks = "marks alone" if word == "person" else "markings alone"
    header = ["picture", *_by_scorer("top-1 of 100", "of 20 near-twins", f"of 20, {marks}")]
    return [
        f"### One {word}",
        table([*header, "background change, of 255"], rows),
        "Each attribute that the prompt fixes, recognised:",
        _prompts(part, _SHORT),
    ]


def _pair(pair: dict[str, Any]) -> list[str]:
    rows = [
        [
            label,
            *(cell for word in SUBJECTS for cell in _both(pair[name][word], "top1")),
            *(percent(pair[name]["both"][scorer]) for scorer in SCORERS),
            *(cell for word in SUBJECTS for cell in _both(pair[name][word], "among_twins")),
        ]
        for name, label in _ROWS.items()
        if name in pair
    ]
    words = [f"{word}, top-1 of 100" for word in SUBJECTS]
    twins = [f"{word}, of 20 near-twins" for word in SUBJECTS]
    return [
        "### A person and a pet in one picture",
        table(["picture", *_by_scorer(*words, "both", *twins)], rows),
        "Each attribute that the prompt fixes, recognised:",
        _prompts(pair, _SHORT),
    ]


def _people(people: dict[str, Any]) -> list[str]:
    keys = {
        "both": "both",
        "first": "first",
        "second": "second",
        "swapped": "the other instead",
        "own_both": "own in both places",
        "among_twins": "of 20 near-twins",
    }
    rows = [
        [_ROWS.get(name, name), *(cell for key in keys for cell in _both(row["identity"], key))]
        for name, row in people.items()
    ]
    shown = {"nothing": "nothing", "masks": "masks", "auto": "auto", **_SHORT}
    return [
        "### Two people in one picture",
        "On one word and one encoder, each looked for where the prompt puts it, among 100 people and the "
        "other of the pair; masks are the picture's halves. *Own in both places*: the share of pictures in "
        "which each place looks more like the person who belongs there than like the other one.",
        table(["measure", *_by_scorer(*keys.values())], rows),
        "Each attribute that the prompt fixes, recognised:",
        _prompts(people, shown),
    ]


def _curve(document: dict[str, Any]) -> list[str]:
    blocks = []
    for word in SUBJECTS:
        rows = [
            [
                f"{point['attention_scale']}",
                *(cell for measure in ("top1", "among_twins") for cell in _both(point["identity"], measure)),
                percent(point["prompt"]["all"]),
                percent(point["prompt"]["balanced"]),
                f"{point['outside']:.1f}",
            ]
            for point in document["curve"][word]
        ]
        header = ["λ", *_by_scorer("top-1 of 100", "of 20 near-twins"), "prompt", "expression, balanced"]
        blocks += [f"One {word}:", table([*header, "background change, of 255"], rows)]
    return [
        "### Identity, prompt and background: λ",
        "![Identity, prompt and background change over λ](lambda.svg)",
        *blocks,
    ]


def _pose_and_style(found: dict[str, Any]) -> list[str]:
    pose = [
        [
            f"{way} the ControlNet",
            f"{score['columns']:.1f}",
            f"{score['rows']:.1f}",
            share(score["there"]),
            percent(score["identity"]),
        ]
        for way, score in found["pose"].items()
    ]
    style = [
        [f"{way} the LoRA", f"{score['distance']:.2f}", percent(score["identity"])]
        for way, score in found["style"].items()
    ]
    number = found["pose"]["with"]["identity"]["trials"]
    return [
        "### Pose and style",
        "Held-out people, in combinations of training and in poses that no word gives. A person attached to "
        "prompts that do not say where it stands: distance from the control picture in art pixels, and the "
        "share of pictures within 2 both ways.",
        table(["picture", "across", "down", "there", f"recognised among {number}"], pose),
        "The Fréchet distance of patches of 4×4 art pixels from drawings in ink. With the LoRA, people are "
        f"judged by drawings in the prompt's own style; the {RECOGNISER} has never seen ink.",
        table(["picture", "distance", f"recognised among {number}"], style),
    ]


def _references(document: dict[str, Any]) -> list[str]:
    rows, against = [], []
    for word in SUBJECTS:
        found = document[f"references_{word}"]
        kinds = {"any picture (as above)": document[word]["personalised"], **found["kinds"]}
        rows += [
            [
                word,
                name,
                *(cell for measure in ("top1", "among_twins") for cell in _both(part["identity"], measure)),
                percent(part["prompt"]["all"]),
            ]
            for name, part in kinds.items()
        ]
        against += [
            [word, name, *(_counts(found["against"][name][scorer]) for scorer in SCORERS)] for name in HIDING
        ]
    header = ["subject", "reference", *_by_scorer("top-1 of 100", "of 20 near-twins"), "prompt"]
    return [
        "### What the reference decides",
        "The same subjects, prompts and seeds with other references. *Any picture* may show a crown over the "
        "hair or closed eyes; hat, mask and scarf hide a third of the head each. An encoder cannot pass on "
        "what its reference hides.",
        table(header, rows),
        f"*{TOGETHER.capitalize()}* against each of them alone: pictures in which only the three together "
        "are recognised, and pictures in which only the single one is, with the p of McNemar's exact test, "
        "not corrected for the number of tests (the paper's Figure 13).",
        table(["subject", "against", *SCORERS], against),
    ]


def _counts(found: dict[str, Any]) -> str:
    return f"{found['only_first']} to {found['only_second']} (p = {found['p']:.2g})"


def _steady(found: dict[str, Any]) -> list[str]:
    labels = {"subjects": "one noise, other subjects", "noises": "one subject, other noises"}
    rows = [
        [
            label,
            spread(found[name]["place"]),
            spread(found[name]["gaze"]),
            f"{found[name]['background']:.1f}",
        ]
        for name, label in labels.items()
    ]
    return [
        "### Other subjects at one seed",
        "Pairs of pictures of one prompt: how many stand at the same place, to the art pixel, and look the "
        "same way, and the mean difference of the background, of 255 (the paper's Figure 7). A prompt leaves "
        "4 to 6 places open, and by chance a third look the same way; prompts that ask for laughing, with "
        "eyes shut, are left out of that. Intervals are over prompts.",
        table(["pairs", "same place", "same gaze", "background"], rows),
    ]


TARGET = "target"


def targets(document: dict[str, Any]) -> list[tuple[str, str, str, str, bool]]:
    """What was to be reached: its name, the target, the figure by each scorer, and whether both reach it."""
    found: list[tuple[str, str, str, str, bool]] = []

    def add(name: str, target: float, values: dict[str, float], *, below: bool = False) -> None:
        met = all(value <= target if below else value >= target for value in values.values())
        cells = [share(values[scorer]) for scorer in SCORERS]
        found.append((name, ("at most " if below else "") + share(target), cells[0], cells[1], met))

    def rates(identity: dict[str, Any], measure: str) -> dict[str, float]:
        return {scorer: identity[scorer][measure]["rate"] for scorer in SCORERS}

    for word in SUBJECTS:
        own = document[word]["personalised"]
        top1, constant, described = (
            rates(document[word][name]["identity"], "top1")
            for name in ("personalised", "constant", "described")
        )
        add(f"{word}, top-1 of 100", 0.8, top1)
        add(f"{word}, of 20 near-twins", 0.5, rates(own["identity"], "among_twins"))
        ratio = {scorer: _of(constant[scorer], top1[scorer]) for scorer in SCORERS}
        add(f"{word}: one value from a description, of what the encoder reaches", 0.5, ratio, below=True)
        less = {scorer: _of(described[scorer], top1[scorer]) for scorer in SCORERS}
        add(f"{word}: described in words, of what the encoder reaches", 0.75, less, below=True)
        floor, ceiling = (document[word][name]["prompt"] for name in ("floor", "ceiling"))
        prompt = _of(own["prompt"]["all"]["rate"], floor["all"]["rate"])
        add(f"{word}: prompt, of the base model's own", 0.95, dict.fromkeys(SCORERS, prompt))
        mood = _of(own["prompt"]["balanced"]["rate"], ceiling["balanced"]["rate"])
        add(f"{word}: expression, of its ceiling", 0.8, dict.fromkeys(SCORERS, mood))
    both = document["pair"]["personalised"]["both"]
    add("person and pet in one picture, both", 0.75, {scorer: both[scorer]["rate"] for scorer in SCORERS})
    add(
        "two people, both, nothing that keeps them apart",
        0.7,
        rates(document["people"]["nothing"]["identity"], "both"),
    )
    return found


def _of(value: float, whole: float) -> float:
    """A part of what another figure is; 1 where that is nothing."""
    return value / whole if whole else 1.0


def figures(document: dict[str, Any]) -> str:
    """All tables of an acceptance run, as Markdown."""
    ran = document["run"]
    attention = [
        [word, *(f"{values[key]:.2f}" for key in ("inside", "peak", "outside"))]
        for word, values in document["attention"].items()
    ]
    goals = [[*cells, "yes" if met else "no"] for *cells, met in targets(document)]
    return "\n\n".join(
        [
            f"Measured by `make acceptance` on {ran['date']} ({ran['machine']}, {ran['workers']} parts at "
            f"once; {ran['seconds']} s; {ran['sampling']['steps']} steps, guidance "
            f"{ran['sampling']['guidance']}; λ and α at the nodes' defaults). Run {ran['number']} of "
            f"{document['runs']} begun on the sealed set: held-out subjects that no choice was made on, in "
            "combinations of prompt attributes that no model learned to draw, but where *Pose and style* "
            "says otherwise. Every picture counts. 95 % intervals in brackets: Wilson's for rates; the "
            "fewer cases an expression has, the wider for *expression, balanced*. Intervals of *all*, and of "
            "attributes and places of two figures, take what is asked of one picture as independent, and "
            "are too narrow.",
            f"*{RECOGNISER.capitalize()}*: a network trained on drawings. *{NEAREST.capitalize()}*: whose "
            f"drawing, in any pose, comes closest to the picture; nothing in it is learned. {TWINS} By "
            "chance, 1 % are recognised among 100, and among 20 near-twins fewer than 5 %. *Background "
            "change* is against the base model's picture, where the true drawing has no figure, nor within "
            "two art pixels of one; the base model's own figure may reach further.",
            table(["", TARGET, *SCORERS, "reached"], goals),
            *(block for word in SUBJECTS for block in _subject(word, document[word])),
            *_references(document),
            *_pair(document["pair"]),
            *_people(document["people"]),
            *_curve(document),
            *_steady(document["steady"]),
            "### Attention to the subject's word",
            "P[s*] of the base model in the finest layers at timestep 500, averaged over heads.",
            table(["word", "inside the subject", "peak inside", "outside"], attention),
            *_pose_and_style(document["pose_and_style"]),
        ]
    )


def summary(document: dict[str, Any]) -> str:
    """The README's table: what a user wants to know first."""
    person, pet, pair, people = (document[name] for name in ("person", "pet", "pair", "people"))
    columns = ("personalised", "floor", "described", "ceiling")

    def identity(label: str, found: list[dict[str, Any]], measure: str) -> list[str]:
        return [label, *(" · ".join(share(each[s][measure]["rate"]) for s in SCORERS) for each in found)]

    def prompt(label: str, part: dict[str, Any]) -> list[str]:
        return [label, *(share(part[name]["prompt"]["all"]["rate"]) for name in columns)]

    together = [people["nothing"], *(people[name] for name in columns[1:])]
    both = [{s: {"both": pair[name]["both"][s]} for s in SCORERS} for name in columns]
    rows = [
        identity("person recognised among 100", [person[n]["identity"] for n in columns], "top1"),
        identity("person among 20 near-twins", [person[n]["identity"] for n in columns], "among_twins"),
        identity("pet recognised among 100", [pet[n]["identity"] for n in columns], "top1"),
        identity("pet among 20 near-twins", [pet[n]["identity"] for n in columns], "among_twins"),
        identity("person and pet in one picture, both recognised", both, "both"),
        identity("two people in one picture, both recognised", [e["identity"] for e in together], "both"),
        prompt("what the prompt asked for, person", person),
        prompt("what the prompt asked for, pet", pet),
        [
            "a person's expression, as asked for",
            *(share(person[name]["prompt"]["balanced"]["rate"]) for name in columns),
        ],
    ]
    header = ["", "with the subject", "base model, no subject", "base model, subject described in words"]
    masks, bounded, auto = (
        share(people[name]["identity"][RECOGNISER]["both"]["rate"])
        for name in ("masks", "masks, bounded", "auto")
    )
    constant = " and ".join(
        share(part["constant"]["identity"][RECOGNISER]["top1"]["rate"]) for part in (person, pet)
    )
    said = (
        f"Two judges, side by side: a {RECOGNISER} that was trained on drawings, and the {NEAREST}, for "
        f"which nothing was learned. By chance 1 % are recognised among 100. {TWINS} Two people each have "
        f"their own photo; in that row nothing keeps them apart. By the {RECOGNISER}, both are known in "
        f"{masks} with a mask each, in {bounded} with `bounded` too, and in {auto} with regions found "
        "automatically. One value a layer, taken from the description in words, in place of the nested ones "
        f"gives {constant} for a person and a pet."
    )
    return "\n\n".join([table([*header, "true drawing"], rows), textwrap.fill(said, width=118)])
