"""Preparing reference pictures: faces found and aligned, subjects isolated. Needs torch, and Pillow to
draw."""
