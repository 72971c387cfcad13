"""What a subject does: observers at the cross-attention layers, maps of what they saw, and how to show it."""
