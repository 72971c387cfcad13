"""`python -m nested_attention.cli`: the command line where the package is not installed."""

from .app import app

app(prog_name="nested-attention")
