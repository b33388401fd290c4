"""Sets up recipes: turns a configuration into the base, the data, the roles and the optimizer."""
