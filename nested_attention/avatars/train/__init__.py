"""How the small world's weights are made, stage by stage; every stage is seeded and resumes from its last
checkpoint."""
