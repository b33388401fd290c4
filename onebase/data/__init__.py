"""From rows to batches: `chat` turns rows into ids, `tree` and `batches` lay the ids out."""
