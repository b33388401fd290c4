"""Which answers to rank next, and what more rankings would buy."""
