"""From files to batches: `formats` reads rows, `chat` turns them into ids, `tree` and `batches` lay the ids out."""
