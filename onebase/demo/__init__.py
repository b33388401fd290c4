"""Every stage on a tiny model, with data made from a grammar."""
