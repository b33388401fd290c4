"""What recipes set up: from a configuration to the base, the data, the roles and the optimizer."""
