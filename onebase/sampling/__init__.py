"""Prompts to samples."""
