"""How good data is: what to leave out and why, how to split it, what it holds, how far its annotators agree."""
