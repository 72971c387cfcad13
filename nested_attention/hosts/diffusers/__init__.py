"""diffusers as a host: processors for training and evaluation (`SubjectSlot`), pipelines (`personalize`)."""

from .applied import AppliedSubject
from .binding import SubjectBinding
from .pipeline import personalize
from .processors import SubjectSlot
from .recorder import Recorder
from .regions import AutomaticRegions
from .self_attention import SelfAttentionSlot
from .vision import encode_subject

__all__ = [
    "AppliedSubject",
    "AutomaticRegions",
    "Recorder",
    "SelfAttentionSlot",
    "SubjectBinding",
    "SubjectSlot",
    "encode_subject",
    "personalize",
]
