"""Runs that are started elsewhere: the files that a job needs there, and the client that takes them."""
