"""A run's folder: what a run records, and what is read back later. Only `trackers` imports torch."""
