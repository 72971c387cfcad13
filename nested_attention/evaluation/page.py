"""report.html: figures with intervals, curves and contact sheets, in one file that needs no other."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from ..pictures.files import open_picture
from .charts import Chart, Point, chart
from .figures import Document
from .samples import Sample

SHOWN = 600
"""Pictures on the contact sheets, at most: some 5 MB."""

THUMBNAIL = 144
"""Pixels of the longer side."""


def environment() -> Environment:
    """jinja2 on the templates beside this module; everything that is filled in is escaped."""
    package = __name__.rpartition(".")[0]
    found = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(figure=_figure, signed=_signed)
    return found


def write_page(document: Document, samples: Sequence[Sample]) -> str:
    """The page of an evaluation. document: as `figures.summarise` gives it."""
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            document=document,
            charts=_charts(document),
            sheets=_sheets(samples),
            left_out=max(0, len(samples) - SHOWN),
            failures=_failures(document),
            headline=_headline(document),
        )
    )


def _headline(document: Document) -> dict[str, Any]:
    """Identity by every independent recogniser side by side: to the truth where all have it, else to the
    reference."""
    judges = [
        scorer
        for scorer in document["scorers"]
        if scorer["independent"] and any(measure["key"] == "sim_ref" for measure in scorer["measures"])
    ]
    figures = [[group["figures"][judge["key"]] for judge in judges] for group in document["groups"]]
    key = "sim_truth" if all("sim_truth" in one for row in figures for one in row) else "sim_ref"
    titles = {measure["key"]: measure["title"] for judge in judges for measure in judge["measures"]}
    return {
        "title": titles.get(key),
        "judges": [judge["title"] for judge in judges],
        "rows": [
            (group["group"], [one.get(key) for one in row])
            for group, row in zip(document["groups"], figures, strict=True)
        ],
    }


def picture_data(path: Path, side: int, quality: int = 80) -> str:
    """A picture as a data address, its longer side at most `side` pixels."""
    picture = open_picture(path)
    if max(picture.size) < side // 2:  # pixel art, and other small pictures, stay sharp
        factor = side // max(picture.size)
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, format="JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _figure(value: Any) -> str:
    """A mean or a rate with its interval, as text."""
    if value is None:
        return "–"
    if "rate" in value:
        low, high, rate = (100 * value[name] for name in ("low", "high", "rate"))
        return f"{rate:.0f} % ({low:.0f}–{high:.0f})"
    return _with_interval(value, "")


def _signed(value: Any) -> str:
    """A difference, with its sign."""
    return _with_interval(value, "+")


def _with_interval(value: Any, sign: str) -> str:
    mean, low, high = (
        None if value[name] is None else f"{value[name]:{sign}.3f}".replace("-", "−")
        for name in ("mean", "low", "high")
    )
    return f"{mean}" if low is None else f"{mean} ({low} to {high})"


def _charts(document: Document) -> list[Chart]:
    """Each figure over λ, and identity against the prompt, where several λ were drawn."""
    found = []
    for people in dict.fromkeys(group["people"] for group in document["groups"]):
        groups = [g for g in document["groups"] if g["people"] == people and g["scale"] is not None]
        groups.sort(key=lambda group: group["scale"])
        if len(groups) < 2:
            continue
        beside = "" if people == 1 else f", {people} people"
        for scorer in document["scorers"]:
            for measure in scorer["measures"]:
                points = [
                    _point(group["scale"], value)
                    for group in groups
                    if (value := group["figures"][scorer["key"]].get(measure["key"]))
                ]
                if len(points) > 1:
                    title = f"{measure['title']}{beside} · {scorer['title']}"
                    found.append(chart(title, "λ", points, share=measure["rate"]))
        trade = _trade(document, groups)
        if trade:
            found.append(chart(f"identity against prompt{beside}, a point a λ", "prompt", trade))
    return found


def _point(x: float, value: Any, label: str = "") -> Point:
    return Point(x, value.get("mean", value.get("rate")), value["low"], value["high"], label)


def _trade(document: Document, groups: Sequence[Any]) -> list[Point]:
    """The paper's Fig. 10: what identity costs of the prompt. By the first judge of each that is there."""
    judged = [
        (scorer["key"], measure["key"])
        for scorer in document["scorers"]
        for measure in scorer["measures"]
        if measure["key"] in ("sim_ref", "clip_t", "prompt")
    ]
    identity = next((pair for pair in judged if pair[1] == "sim_ref"), None)
    prompt = next((pair for pair in judged if pair[1] != "sim_ref"), None)
    if identity is None or prompt is None:
        return []
    points = []
    for group in groups:
        y = group["figures"][identity[0]].get(identity[1])
        x = group["figures"][prompt[0]].get(prompt[1])
        if x and y:
            place = x.get("mean", x.get("rate"))
            points.append(Point(place, y["mean"], label=f"λ {group['scale']:g}"))
    return points if len(points) > 1 else []


def _sheets(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """A sheet for each subject: a row for each prompt, the groups and seeds beside one another."""

    @cache
    def shown(path: Path) -> str:
        return picture_data(path, THUMBNAIL)

    found: dict[str, dict[str, Any]] = {}
    for sample in samples[:SHOWN] if len(samples) <= SHOWN else _spread(samples):
        sheet = found.setdefault(
            sample.subject,
            {
                "subject": sample.subject,
                "references": [shown(path) for person in sample.people for path in person.references],
                "rows": {},
            },
        )
        row = sheet["rows"].setdefault(sample.prompt or "", {"truth": None, "pictures": []})
        if sample.truth is not None:
            row["truth"] = shown(sample.truth)
        row["pictures"].append({"name": sample.name, "group": sample.group, "data": shown(sample.picture)})
    return list(found.values())


def _spread(samples: Sequence[Sample]) -> list[Sample]:
    """As many as are shown, evenly from all."""
    return [samples[index * len(samples) // SHOWN] for index in range(SHOWN)]


def _failures(document: Document) -> list[dict[str, Any]]:
    """Pictures in which somebody was not found or not recognised, those of most scorers first."""
    found = []
    for picture in document["pictures"]:
        wrong = [
            f"{scorer['title']}: not {measure['title']}"
            for scorer in document["scorers"]
            for measure in scorer["measures"]
            if measure["rate"] and picture["scores"][scorer["key"]][measure["key"]] == 0
        ]
        if wrong:
            found.append({"picture": picture, "wrong": wrong})
    found.sort(key=lambda entry: -len(entry["wrong"]))
    return found
