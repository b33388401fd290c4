"""`python -m onebase` is the `onebase` command."""

import sys

from onebase.start import main

if __name__ == "__main__":
    sys.exit(main())
