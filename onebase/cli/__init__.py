"""The command line: words to a configuration, a verb and an exit code."""
