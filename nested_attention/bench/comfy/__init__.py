"""The parts of the benchmark that run inside ComfyUI."""
