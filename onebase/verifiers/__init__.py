"""Verifiers: rules that check an answer instead of learning what a good one looks like. Nothing here imports torch."""
