"""Lets `DiffusionPipeline.from_pretrained(..., custom_pipeline="pipeline", trust_remote_code=True)` find the class."""

from baton_diffusers import BatonPipeline


__all__ = ["BatonPipeline"]
