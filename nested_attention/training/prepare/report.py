"""What was prepared, to be looked at: a page with counts, a contact sheet, and what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Template
from PIL import Image
from torch import Tensor

from ...storage.files import replacing
from ..shards import Index
from .plan import Plan, Planned, Reject
from .recipes import EXPECTED_REASONS, Recipe

SHOWN, TILE = 24, 160
"""Samples on the contact sheet, and pixels a side of their pictures."""

_PAGE = Template(
    """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Prepared: {{ folder }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .8rem .2rem 0; text-align: left }
figure { display: inline-block; margin: .4rem; width: 20.5rem; vertical-align: top }
figcaption { font-size: 13px } img { vertical-align: bottom }
</style>
<h1>{{ folder }}</h1>
<table>
<tr><th>Kept</th><td>{{ kept }} of {{ kept + rejects|length }} pictures, of {{ subjects }} subjects</td></tr>
<tr><th>Held out for validation</th><td>{{ held_out }}</td></tr>
<tr><th>Recipe</th><td>{{ settings.recipe }}, word “{{ settings.word }}”, {{ settings.features }}</td></tr>
<tr><th>Base model</th><td>{{ settings.model.base }}</td></tr>
<tr><th>On disk</th><td>{{ "%.2f"|format(gigabytes) }} GB</td></tr>
</table>
{% if doubt %}<p><b>Mind: {{ doubt }}.</b></p>
{% endif %}<h2>Sizes</h2>
<table>{% for (height, width), count in sizes %}
<tr><td>{{ width }} × {{ height }}</td><td>{{ count }}</td></tr>{% endfor %}
</table>
<h2>What a step reads: the reference, the target, the caption</h2>
{% for name, caption in shown %}<figure><img src="contact/{{ loop.index0 }}.jpg" alt="">
<figcaption><b>{{ name }}</b><br>{{ caption }}</figcaption></figure>
{% endfor %}
<h2>Left out: {{ rejects|length }}</h2>
{% for reason, count in reasons %}<h3>{{ reason }}: {{ count }}</h3><p>To use them, {{ advice[reason] }}.</p>
<table>{% for each in rejects if each.reason == reason %}
<tr><td>{{ each.name }}</td><td>{{ each.detail }}</td></tr>{% endfor %}
</table>
{% else %}<p>Nothing.</p>{% endfor %}
</html>
""",
    autoescape=True,
)


def to_image(picture: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] → a picture."""
    return Image.fromarray(picture.mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def pair_image(reference: Tensor, target: Tensor, tile: int = TILE) -> Image.Image:
    """Reference and target side by side, each within a square of that side, on white."""
    sheet = Image.new("RGB", (2 * tile, tile), "white")
    for number, picture in enumerate((reference, target)):
        image = to_image(picture)
        image.thumbnail((tile, tile))
        left, top = (tile - image.width) // 2, (tile - image.height) // 2
        sheet.paste(image, (number * tile + left, top))
    return sheet


def write_report(folder: Path, recipe: Recipe, plan: Plan, index: Index | None) -> Path:
    """`report.html` and the pictures it shows; its path. index: None where nothing was kept."""
    step = max(1, len(plan.kept) // SHOWN)
    shown = plan.kept[::step][:SHOWN]
    _write_contacts(folder / "contact", recipe, shown)
    files = [folder / shard.file for shard in index.shards] if index else []
    reasons = Counter(reject.reason for reject in plan.rejects)
    page = _PAGE.render(
        folder=folder.name,
        settings=recipe.settings,
        kept=len(plan.kept),
        held_out=sum(planned.held_out for planned in plan.kept),
        subjects=len({planned.row.subject for planned in plan.kept}),
        sizes=sorted(Counter(planned.size for planned in plan.kept).items()),
        gigabytes=sum(file.stat().st_size for file in files) / 1e9,
        shown=[(planned.row.name, planned.row.caption) for planned in shown],
        rejects=sorted(plan.rejects, key=lambda reject: reject.name),
        reasons=reasons.most_common(),
        advice=EXPECTED_REASONS,
        doubt=without_pairs(plan, recipe),
    )
    path = folder / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _write_contacts(folder: Path, recipe: Recipe, shown: Sequence[Planned]) -> None:
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.jpg"):
        old.unlink()
    for number, planned in enumerate(shown):
        prepared = recipe.prepare(planned.sample, planned.look)
        pair_image(prepared.reference, prepared.target).save(folder / f"{number}.jpg", quality=88)


def write_held_out(folder: Path, recipe: Recipe, plan: Plan) -> None:
    """Reference and target of every sample that is kept for validation, under the key of its reference."""
    folder.mkdir(exist_ok=True)
    for planned in plan.kept:
        path = folder / f"{planned.row.keys['reference']}.png"
        if planned.held_out and not path.exists():
            prepared = recipe.prepare(planned.sample, planned.look)
            pair_image(prepared.reference, prepared.target, 256).save(path)


_WHOSE = {
    "folder": "a folder a subject",
    "parquet": "the column `subject`",
    "webdataset": "KEY.subject.txt",
}
"""How each kind of source says whom a picture shows."""


def without_pairs(plan: Plan, recipe: Recipe) -> str:
    """What follows where several pictures of a subject are meant and nobody has two; "" where that is well.
    Whoever packs an album's folders into a tar loses what they said."""
    settings = recipe.settings
    alone = [planned for planned in plan.kept if "reference" not in planned.sample.more]
    if settings.recipe != "identities" or settings.source is None or not alone:
        return ""
    if len({planned.row.subject for planned in plan.kept}) < len(plan.kept):
        return ""
    return (
        "no subject has two pictures, so each picture is its own reference, and an encoder learns to copy; "
        f"say whom a picture shows by {_WHOSE[settings.source.kind]}"
    )


def summary(plan: Plan, recipe: Recipe, page: Path) -> list[str]:
    """What was kept and left out, in lines."""
    reasons = Counter(reject.reason for reject in plan.rejects)
    listed = "".join(f"; {count} × {reason}" for reason, count in reasons.most_common())
    held = sum(planned.held_out for planned in plan.kept)
    return [
        f"kept {len(plan.kept)} ({held} held out), left out {len(plan.rejects)}{listed}",
        *filter(None, [without_pairs(plan, recipe)]),
        f"The report: {page.resolve()}",
    ]


def first_rejects(rejects: Sequence[Reject], number: int = 3) -> str:
    """For a message: some samples, and why they were left out."""
    return "; ".join(f"{reject.name}: {reject.reason}, {reject.detail}" for reject in rejects[:number])
