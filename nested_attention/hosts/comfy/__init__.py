"""ComfyUI: subjects in MODEL and CLIP, and everything the nodes call. The only part that imports comfy."""

from ...pictures.check import check_pictures
from .apply import apply_subject
from .encoding.memory import SubjectEncoderHandle, load_encoder_for_comfy, manage_encoder
from .encoding.pictures import encode_subject
from .encoding.prepared import prepare_references, warn_of_photographs
from .encoding.vision import load_vision
from .inspect import maps_ui, observe_subjects, view_maps
from .prompts.clip import SubjectCLIP, mark_prompt
from .sampling.batches import encode_batch
from .state import STATE, applied_state, connection, told

__all__ = [
    "STATE",
    "SubjectCLIP",
    "SubjectEncoderHandle",
    "applied_state",
    "apply_subject",
    "check_pictures",
    "connection",
    "encode_batch",
    "encode_subject",
    "load_encoder_for_comfy",
    "load_vision",
    "manage_encoder",
    "maps_ui",
    "mark_prompt",
    "prepare_references",
    "observe_subjects",
    "told",
    "view_maps",
    "warn_of_photographs",
]
