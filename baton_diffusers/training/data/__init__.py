"""Data of training: clips of one's own, the cache of their features, and the dataset that reads it."""
