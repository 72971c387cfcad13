"""diffusers as a host: processors for training and evaluation (`SubjectSlot`), pipelines (`personalize`)."""

from .processors import SubjectBinding, SubjectSlot

__all__ = ["SubjectBinding", "SubjectSlot"]
