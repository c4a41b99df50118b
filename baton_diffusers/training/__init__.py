"""Objectives, task mixing, feature caching and evaluation; the scripts in `examples` only parse arguments."""
