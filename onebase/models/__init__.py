"""The frozen base, its roles and their adapters: in memory and on disk."""
