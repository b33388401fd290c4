"""What is shown of a run: findings, curves, pages, intervals."""
