"""Pictures to subjects in ComfyUI: CLIP vision models, and the memory that encoders and subjects take."""
