"""Which encoder and which vision model a preset means: of the files there are, those that fit the MODEL."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import folder_paths

from ..nested_attention.avatars.comfy.world import build_clip_vision, read_part
from ..nested_attention.checkpoint import read_encoder_config
from ..nested_attention.encoder import FeatureLayer, SubjectEncoderConfig
from ..nested_attention.errors import NestedAttentionError
from ..nested_attention.hosts.comfy import SubjectEncoderHandle, load_encoder_for_comfy, load_vision
from ..nested_attention.hosts.comfy.apply import check_fits, fits_model
from ..nested_attention.hosts.comfy.encoding.vision import vision_name, vision_width
from ..nested_attention.hosts.comfy.kept import Kept
from ..nested_attention.paths import SMALL_WORLD
from ..nested_attention.pictures.suspect import ANIMALS, PEOPLE
from ..nested_attention.storage.files import file_state
from ..nested_attention.storage.registry import find_weights
from .load import BUNDLED, FOLDER, encoder_path, vision_path

KINDS = {"person": PEOPLE, "pet": ANIMALS}
"""Presets that mean whichever encoder for such a subject fits the MODEL, and the words of such encoders."""

ADVICE = "`nested-attention download` lists what is known, with licences and sizes, and fetches it"

VISIONS = "clip_vision"
"""ComfyUI's folder of vision models."""

FileState = tuple[int, ...]


class Loaded:
    """What presets have read, for the next run and the next node: two encoders, and one vision model."""

    def __init__(self) -> None:
        self.encoders: Kept[SubjectEncoderHandle] = Kept(2)
        self.visions: dict[tuple[Path, FileState], Any] = {}


_living: WeakValueDictionary[str, Loaded] = WeakValueDictionary()


def loaded() -> Loaded:
    """The one that somebody holds, or a new one. Nodes hold it, and ComfyUI holds nodes: until they leave the
    graph, or *Free model and node cache* drops them."""
    found = _living.get("")
    if found is None:
        found = _living[""] = Loaded()
    return found


def encoder_names() -> list[str]:
    """Those that come with the pack, and those in models/nested_attention."""
    return [*BUNDLED, *folder_paths.get_filename_list(FOLDER)]


def preset_options() -> list[str]:
    """The kinds, and every encoder by its file."""
    return [*KINDS, *encoder_names()]


def check_preset(preset: str) -> None:
    """Raises NestedAttentionError for one that is neither a kind nor a file."""
    if preset not in KINDS:
        encoder_path(preset)


def preset_state(preset: str) -> Any:
    """What differs once a preset may mean another file."""
    encoders = encoder_names() if preset in KINDS else [preset]
    return preset, _states(FOLDER, encoders), _states(VISIONS, folder_paths.get_filename_list(VISIONS))


def _states(folder: str, names: list[str]) -> list[tuple[str, FileState]]:
    """Those of the files of a model folder. What comes with the pack is not in one, and does not change."""
    paths = (folder_paths.get_full_path(folder, name) for name in names)
    return [(path, _state(Path(path))) for path in paths if path is not None]


def find_encoder(preset: str, model: Any) -> SubjectEncoderHandle:
    """The encoder that a preset means for a MODEL.

    Raises NestedAttentionError that lists what was looked at if none fits, and one that names the file if
    that was chosen and does not fit: before its vision model is looked for, which would not help.
    """
    chosen = preset not in KINDS
    name = preset if chosen else _fitting(preset, model)
    path = encoder_path(name)
    if chosen:
        try:
            check_fits(model, _config(path, _state(path)))
        except NestedAttentionError as error:
            raise NestedAttentionError(
                f"{error}. The encoder is {name}: set preset to {' or '.join(KINDS)}, which take one that "
                "fits the MODEL, or connect a checkpoint of the encoder's kind"
            ) from error
    return loaded().encoders.get((path, _state(path)), lambda: load_encoder_for_comfy(path))


def find_vision(encoder: SubjectEncoderHandle) -> Any:
    """The CLIP vision model that an encoder reads pictures with: the small world's, or a file of the width it
    was trained with in models/clip_vision. Raises NestedAttentionError if there is none."""
    width = encoder.config.vision_dim
    if width == _small_world_width():
        return _small_world_vision()
    known = find_weights("clip-vit-h").target
    names = sorted(folder_paths.get_filename_list(VISIONS), key=lambda name: Path(name).name != known)
    for path in map(vision_path, names):
        if _width(path, _state(path), encoder.config.features) == width:
            return _vision(path, encoder)
    raise NestedAttentionError(
        f"the subject encoder {encoder.source} reads pictures with {vision_name(encoder.config)}. Of "
        f"{', '.join(names) or 'no files'} in models/clip_vision none is that wide ({width}). Put it there"
    )


def word_of(preset: str, encoder: SubjectEncoderHandle) -> str | None:
    """The word a preset attaches its subject to; None: the encoder's. An adapter in IP-Adapter's way reads
    any subject, and its word is only a default."""
    return preset if preset in KINDS and encoder.config.word not in KINDS[preset] else None


def _fitting(kind: str, model: Any) -> str:
    """An encoder of the user's own comes before one of the small world, and one that was trained for the kind
    before an adapter that reads any subject."""
    looked, adapters = [], []
    for name in [*folder_paths.get_filename_list(FOLDER), *BUNDLED]:
        try:
            config = _config(path := encoder_path(name), _state(path))
        except NestedAttentionError:
            looked.append(f"{name} (cannot be read)")
            continue
        fits = fits_model(model, config)
        if fits and config.injection == "decoupled":
            adapters.append(name)
        elif fits and config.word in KINDS[kind]:
            return name
        looked.append(f"{name} (for a {config.word}{'' if fits else ', of another model'})")
    if adapters:  # those for faces say so in their names, and nowhere else
        return min(adapters, key=lambda name: ("face" in name.lower()) == (kind == "pet"))
    raise NestedAttentionError(
        f"there is no subject encoder for a {kind} that fits the MODEL. Looked at {', '.join(looked)}. Put "
        f"one into models/{FOLDER}: {ADVICE}. Or try the small world: connect Demo World"
    )


def _state(path: Path) -> FileState:
    return file_state(path.stat())


@lru_cache(maxsize=64)
def _config(path: Path, state: FileState) -> SubjectEncoderConfig:
    return read_encoder_config(path)


@lru_cache(maxsize=64)
def _width(path: Path, state: FileState, features: FeatureLayer) -> int | None:
    try:
        return vision_width(path, features)
    except NestedAttentionError:
        return None


def _vision(path: Path, encoder: SubjectEncoderHandle) -> Any:
    """Of a file of the width that the encoder reads: the last one is kept, for whichever encoder."""
    key, visions = (path, _state(path)), loaded().visions
    if key not in visions:
        visions.clear()  # before the next is read
        visions[key] = load_vision(path, encoder)
    return visions[key]


@lru_cache(maxsize=1)
def _small_world_vision() -> Any:
    return build_clip_vision(read_part(SMALL_WORLD, "vision"))


@lru_cache(maxsize=1)
def _small_world_width() -> int:
    return int(read_part(SMALL_WORLD, "vision").config["hidden_size"])
