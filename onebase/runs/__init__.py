"""A run's folder: what is recorded while it lasts and read back afterwards. Nothing here imports torch."""
