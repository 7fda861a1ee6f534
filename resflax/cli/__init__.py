"""Command line: one file per command, and the table of commands in `main`."""
