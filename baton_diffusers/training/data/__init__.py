"""Training data: your own clips, the cache of their features, and the dataset that reads it."""
