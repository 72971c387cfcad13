"""`nested-attention …`: the library's work from the command line."""
