"""Files that put a server somewhere else. They are written, never sent: nothing here opens a connection."""
