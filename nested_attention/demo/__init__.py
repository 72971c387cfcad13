"""The demo: one picture that shows a subject kept, made with the weights that come with the repository."""
