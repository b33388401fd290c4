"""Reports on a run: findings, curves, the report page, intervals."""
