"""Bad inputs to every verb, kept as tables: what is set up, the command line, and how it has to end."""
