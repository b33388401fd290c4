"""Rollouts: samples with everything an update needs (scores, log-probs, values)."""
