"""Verbs that train nothing: look at runs, check the machine, chat, score."""
