"""Samplers draw completions for prompts."""
