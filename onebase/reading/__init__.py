"""Any common file in, rows out: `files` opens it, `containers` finds its rows, `formats` knows their layouts."""
