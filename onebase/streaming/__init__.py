"""Rows of files larger than memory, read and tokenized while a run needs them."""
