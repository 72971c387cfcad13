"""How the small world's weights are made, in stages: each is seeded and resumes from its last checkpoint."""
