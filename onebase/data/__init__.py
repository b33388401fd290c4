"""From files to token batches: `formats` reads rows, `chat` turns words into ids, `tree` lays them out, `batches` orders them."""
