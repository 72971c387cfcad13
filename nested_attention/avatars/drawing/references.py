"""Reference pictures of the small world: drawn subjects that no training stage has seen, one a seed.

They are of the development half: whoever looks at them sees nobody of the final figures.
"""

from __future__ import annotations

import numpy as np

from .covers import COVERS, cover
from .identity import KINDS, Identity, sample
from .picture import Figure, Picture, crop, crop_window, enlarge, render
from .pose import Pose
from .prompts import sample_picture
from .scenes import SCENES


def held_out(kind: str, seed: int) -> Identity:
    """The held-out person or pet (`kind`) of a seed."""
    return sample(KINDS[kind], np.random.default_rng(seed), "development")  # type: ignore[type-var]


def close_up(identity: Identity, scene: str = next(iter(SCENES))) -> tuple[np.ndarray, np.ndarray]:
    """A subject as a passport shows it, calm, bare and facing us: colours (28, 28, 3) uint8, and the part
    that each art pixel shows (28, 28) uint8."""
    pose = Pose(x=16, y=8, gaze=0, expression="calm")
    drawn = render(Picture((Figure(identity, "middle", pose),), scene, "photo"))
    corner = crop_window(pose)
    return crop(drawn.rgb, corner), crop(drawn.part[..., None], corner)[..., 0]


def reference_crop(identity: Identity) -> np.ndarray:
    """The colours of a `close_up`, as one would crop a photograph. (28, 28, 3) uint8"""
    return close_up(identity)[0]


def reference_picture(identity: Identity) -> np.ndarray:
    """The same in picture pixels, as a file would show it. (112, 112, 3) uint8"""
    return enlarge(reference_crop(identity))


def sample_crop(rng: np.random.Generator, identity: Identity, *, covered: float = 0.0) -> np.ndarray:
    """A crop of a subject from a picture of its own: some pose, expression, scene and clothing.

    (28, 28, 3) uint8. What the encoders are trained and evaluated with. covered: the share of crops in which
    something covers a part of the head.
    """
    picture = sample_picture(rng, (identity,), split=None)
    x, y = crop_window(picture.figures[0].pose)
    right, down = int(rng.integers(-1, 2)), int(rng.integers(-1, 2))
    rgb = crop(render(picture).rgb, (x + right, y + down))
    if covered and rng.random() < covered:
        rgb = cover(rgb, str(rng.choice(COVERS)), moved=(right, down))
    return rgb
