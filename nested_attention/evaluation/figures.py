"""From the scores of single pictures to figures with intervals, and from one run's figures to another's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import NestedAttentionError
from .samples import Sample
from .scorers import Measure, Scorer, Scores, state_of_judge
from .statistics import Mean, Rate, clustered_mean, wilson

FORMAT = "nested_attention.evaluation 1"

Document = dict[str, Any]
"""What figures.json holds."""


def summarise(
    samples: Sequence[Sample],
    scorers: Sequence[Scorer],
    scores: Mapping[str, Mapping[str, Scores]],
    title: str,
    folder: Path,
) -> Document:
    """The figures of every group of pictures.

    scores: sample → scorer → measure → value. folder: where figures.json goes, which the pictures' paths in
    it are relative to. A measure that applies to no picture of a group has no figure.
    """
    groups = []
    for group in dict.fromkeys(sample.group for sample in samples):
        inside = [sample for sample in samples if sample.group == group]
        groups.append(
            {
                "group": group,
                "scale": inside[0].scale,
                "people": len(inside[0].people),
                "pictures": len(inside),
                "figures": {
                    scorer.key: {
                        measure.key: figure
                        for measure in scorer.measures
                        if (figure := _figure(inside, measure, scorer.key, scores)) is not None
                    }
                    for scorer in scorers
                },
            }
        )
    return {
        "format": FORMAT,
        "title": title,
        "scorers": [
            {
                "key": scorer.key,
                "title": scorer.title,
                "state": state_of_judge(scorer),
                "independent": scorer.independent,
                "measures": [asdict(measure) for measure in scorer.measures],
            }
            for scorer in scorers
        ],
        "groups": groups,
        "pictures": [
            {
                "name": sample.name,
                "group": sample.group,
                "subject": sample.subject,
                "people": [person.name for person in sample.people],
                "prompt": sample.prompt,
                "text": sample.text,
                "picture": _relative(sample.picture, folder),
                "references": [[_relative(path, folder) for path in p.references] for p in sample.people],
                "scores": scores[sample.name],
            }
            for sample in samples
        ],
    }


def _figure(
    samples: Sequence[Sample], measure: Measure, scorer: str, scores: Mapping[str, Mapping[str, Scores]]
) -> Mean | Rate | None:
    found = [
        (value, frozenset(person.name for person in sample.people))
        for sample in samples
        if (value := scores[sample.name][scorer][measure.key]) is not None
    ]
    if not found:
        return None
    if measure.rate:
        return wilson(sum(value == 1 for value, _ in found), len(found))
    return clustered_mean([value for value, _ in found], [people for _, people in found])


def _relative(path: Path, folder: Path) -> str:
    """So that an evaluation's folder can be moved."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on another drive of Windows
        return path.resolve().as_posix()


def read_figures(path: Path) -> Document:
    """An earlier run's figures.json, or its folder; the pictures' paths as they are from here.

    Raises NestedAttentionError for anything else.
    """
    path = path / "figures.json" if path.is_dir() else path
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NestedAttentionError(
            f"there is no file {path}; expected figures.json of an earlier evaluation, or its folder"
        ) from error
    except (OSError, ValueError) as error:
        raise NestedAttentionError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise NestedAttentionError(f"{path} has the format {found!r}; expected {FORMAT!r}")
    for picture in document["pictures"]:
        picture["picture"] = str(path.parent / picture["picture"])
        picture["references"] = [[str(path.parent / one) for one in each] for each in picture["references"]]
    return document


def compare(now: Document, before: Document) -> list[dict[str, Any]]:
    """What has changed since an earlier run: a row for each figure that both have.

    The difference is between the pictures that both runs have scored, by name: the mean over subjects, with
    its interval. verdict: `better` or `worse` where the interval excludes 0, else `no difference shown`; `too
    few subjects` where there is no interval. What `unlike` names is left out.
    """
    both, judges = [pair for pair in of_one_name(now, before) if alike(*pair)], _judges(before)
    rows = []
    for scorer in now["scorers"]:
        if scorer["key"] not in judges or not _one_judge(scorer, judges[scorer["key"]]):
            continue
        for measure in scorer["measures"]:
            value = _value(scorer["key"], measure["key"])
            for group in now["groups"]:
                pairs = [
                    (value(picture) - value(earlier), frozenset(picture["people"]))
                    for picture, earlier in both
                    if picture["group"] == group["group"]
                    and value(picture) is not None
                    and value(earlier) is not None
                ]
                if not pairs:
                    continue
                difference = clustered_mean([pair[0] for pair in pairs], [pair[1] for pair in pairs])
                rows.append(
                    {
                        "scorer": scorer["key"],
                        "measure": measure["key"],
                        "title": measure["title"],
                        "group": group["group"],
                        "difference": difference,
                        "verdict": _verdict(difference, measure["better"]),
                    }
                )
    return rows


def unlike(now: Document, before: Document) -> list[str]:
    """What two runs call by one name and is not one: judges, and pictures of other prompts."""
    judges, pairs = _judges(before), of_one_name(now, before)
    told = []
    for scorer in now["scorers"]:
        earlier = judges.get(scorer["key"], scorer)
        if not _one_judge(scorer, earlier):
            renamed = scorer["title"] != earlier["title"]
            told.append(
                f"{earlier['title']} then, {scorer['title']} now"
                if renamed
                else f"{scorer['title']}, then and now of other weights or settings"
            )
    others = sum(not alike(*pair) for pair in pairs)
    return [*told, f"{others} of {len(pairs)} pictures, whose prompts differ"] if others else told


def of_one_name(first: Document, second: Document) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The pictures that two runs have by the same name, in the order of the first."""
    others = {picture["name"]: picture for picture in second["pictures"]}
    return [(one, others[one["name"]]) for one in first["pictures"] if one["name"] in others]


def _judges(document: Document) -> dict[str, dict[str, Any]]:
    return {scorer["key"]: scorer for scorer in document["scorers"]}


def _one_judge(one: dict[str, Any], other: dict[str, Any]) -> bool:
    key = "state" if "state" in one and "state" in other else "title"  # figures of before have no state
    return bool(one[key] == other[key])


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two pictures of one name are of one prompt, whatever words encoders have for their people."""
    key = "text" if one.get("text") and other.get("text") else "prompt"
    return bool(one.get(key) == other.get(key))


def _value(scorer: str, measure: str) -> Callable[[dict[str, Any]], Any]:
    return lambda picture: picture["scores"].get(scorer, {}).get(measure)


def _verdict(difference: Mean, better: str) -> str:
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "too few subjects"
    if low <= 0 <= high:
        return "no difference shown"
    return "better" if (low > 0) == (better == "higher") else "worse"
