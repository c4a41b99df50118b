"""Lets `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` find the class."""

from baton_diffusers import BatonPipeline


__all__ = ["BatonPipeline"]
