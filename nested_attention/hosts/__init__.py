"""Bindings of the mechanism to the programs that run SDXL."""
