"""Training: what a step minimises, what it reads, and the loop around both, on Hugging Face Accelerate."""
