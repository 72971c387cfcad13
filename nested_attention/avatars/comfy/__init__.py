"""The small world as ComfyUI objects."""
