"""Evaluation on Stage: scores of clips, and arms of ablations that are compared on the same scenes."""
