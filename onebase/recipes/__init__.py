"""One command, one file, one readable loop. The verb of the command line is the name of the module."""
