"""Where the files are that come with the pack: in a clone of the repository, or in an installed wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
PACK = PACKAGE.parent
"""The folder that ComfyUI loads as a custom node: the repository's root. A wheel does not contain it."""

WEIGHTS = PACK / "weights" if (PACK / "weights" / "registry.json").is_file() else PACKAGE / "weights"
REGISTRY = WEIGHTS / "registry.json"
SMALL_WORLD = WEIGHTS / "avatars"
ADAPTERS = WEIGHTS / "adapters"
"""The small world's decoupled adapters, for anchored attention."""
FACE_DETECTOR = WEIGHTS / "blazeface" / "face_detection.safetensors"
FACE_RECOGNISER = WEIGHTS / "face_recognition" / "face_recognition.safetensors"

CONFIGS = PACK / "configs" if (PACK / "configs" / "train").is_dir() else PACKAGE / "configs"
"""What `nested-attention prepare` and `nested-attention train` read."""

_VIEW = "nested_attention_view.js"
MAPS_VIEW = PACK / "web" / _VIEW if (PACK / "web" / _VIEW).is_file() else PACKAGE / "inspection" / _VIEW
"""The script that shows maps in a browser: the editor's, and the page's of `nested-attention inspect`."""
