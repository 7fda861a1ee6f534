"""The `resflax` command line."""
