"""`BatonPipeline` and its output."""
