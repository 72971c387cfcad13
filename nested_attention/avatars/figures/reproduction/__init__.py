"""The paper's comparisons in the small world: which runs, what they draw, what the paper says, and a page."""
