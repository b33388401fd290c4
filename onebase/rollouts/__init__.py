"""Samples with everything an update needs: scores, log-probs, values."""
