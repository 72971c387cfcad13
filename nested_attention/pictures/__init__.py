"""Preparing reference pictures: faces found, aligned and recognised, subjects isolated. Needs torch, and
Pillow to draw."""
