"""Engines run a base as one of its roles: over prompt trees to train and score, token by token to sample."""
