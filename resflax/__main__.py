"""`python -m resflax`, the same as `resflax`."""

from resflax.cli.main import entry

if __name__ == "__main__":
    entry()
