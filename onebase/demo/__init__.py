"""The demo: every stage on a tiny model, with data from a grammar."""
