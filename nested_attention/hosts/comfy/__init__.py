"""ComfyUI: subjects in MODEL and CLIP, and everything the nodes call. The only part that imports comfy."""

from .apply import apply_subject
from .batches import encode_batch
from .clip import SubjectCLIP, mark_prompt
from .memory import SubjectEncoderHandle, load_encoder_for_comfy, manage_encoder
from .pictures import check_pictures, encode_subject
from .vision import load_vision

__all__ = [
    "SubjectCLIP",
    "SubjectEncoderHandle",
    "apply_subject",
    "check_pictures",
    "encode_batch",
    "encode_subject",
    "load_encoder_for_comfy",
    "load_vision",
    "manage_encoder",
    "mark_prompt",
]
