"""Subjects while ComfyUI samples: from a MODEL's chain of subjects to each attention layer."""
