"""The figures of maps as Markdown, for the gallery."""

from __future__ import annotations

from typing import Any

from .judges import SUBJECTS
from .maps import PARTS
from .report import table

MAPS = {"word": "the word, P[s\\*]", "change": "the change"}


def tables(document: dict[str, Any]) -> str:
    """Where subjects stand, and which part of the reference places take."""
    run, grid, time = document["run"], document["grid"], document["time"]
    places = [
        [
            f"{subject}: {told}",
            f"{one['iou']:.2f}",
            f"{one['lowest']:.2f}",
            f"{one['half']['rate']:.0%}",
            f"{one['threshold']:.2f}",
        ]
        for subject in SUBJECTS
        for name, told in MAPS.items()
        for one in [document[subject]["place"][name]]
    ]
    parts = [
        [
            f"{subject}: {name}",
            str(one["places"]),
            *(f"{one[key]:.0%}" for key in ("same", "compared", "chance")),
        ]
        for subject in SUBJECTS
        for name in PARTS
        for one in [document[subject]["parts"][name]]
        if one["places"]
    ]
    shares = "; ".join(
        f"{subject}: {document[subject]['share']['strongest']:.0%}, the two strongest together "
        f"{document[subject]['share']['two']:.0%}"
        for subject in SUBJECTS
    )
    return "\n\n".join(
        [
            f"Measured by `nested-attention world maps` ({run['date']}, {run['machine']}): "
            f"{document['subjects']} held-out subjects of each kind at λ = 1, on the {grid[0]} × {grid[1]} "
            "grid, the only one of the small world that is fine enough. Thresholds, as parts of a map's "
            f"maximum, were chosen on {document['training']} training identities.",
            table(["", "mean IoU", "lowest", "IoU ≥ 0.5", "threshold"], places),
            "For places on the eyes, the hair or the mouth: how often the patch of the reference that their "
            "tokens looked at most is on the same part. *Same part*: by that attention itself. *Compared*: "
            "by its ratio to the mean over the picture's places. *Chance*: the share of patches that hold "
            "some of the part. The goal was 60 % of places; where a row is below, it was missed.",
            table(["", "places", "same part", "compared", "chance"], parts),
            f"The share of the strongest token where the subject stands: {shares}.",
            f"CPU time of a sampling with a person and a pet, times that of one that is not observed: "
            f"{time['decoder']:.2f} with the default layers, {time['all']:.2f} with all.",
        ]
    )
