"""Leaving: roles as plain models, adapters and files that other engines read, each checked and with a model card."""
