"""Verbs that do not train: inspect runs, check the machine, chat, score."""
