"""Lets `ModularPipeline.from_pretrained(folder, trust_remote_code=True)` find the blocks."""

from baton_diffusers import BatonAutoBlocks


__all__ = ["BatonAutoBlocks"]
