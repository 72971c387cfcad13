"""diffusers as a host: processors for training and evaluation (`SubjectSlot`), pipelines (`personalize`)."""

from .pipeline import AppliedSubject, personalize
from .processors import SubjectBinding, SubjectSlot

__all__ = ["AppliedSubject", "SubjectBinding", "SubjectSlot", "personalize"]
