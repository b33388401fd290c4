"""One command, one file, one readable loop. Each module is named after its verb on the command line."""
