"""The frozen base, its roles, the forward passes over trees, and decoding."""
