"""Other tools' configurations, read as ours."""
