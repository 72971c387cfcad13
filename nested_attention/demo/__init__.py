"""What one tries first: the demo's picture, and one of whoever is on a photograph."""
