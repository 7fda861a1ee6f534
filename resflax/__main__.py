"""`python -m resflax`, the same as `resflax`."""

import sys

from resflax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
