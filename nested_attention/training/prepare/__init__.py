"""Preparing: from a folder of photographs to training shards, with everything that is frozen encoded once."""
