"""From files to batches: `formats` reads rows, `chat` makes ids of them, `tree` and `batches` lay those out."""
