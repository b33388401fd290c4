"""What a person can set: keys, their defaults, the files they are read from."""
