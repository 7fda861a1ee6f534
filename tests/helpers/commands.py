"""Runs command-line entry points inside the test process."""

from resflax.cli.main import main


def run_train(*arguments):
    """Runs `resflax train` with `arguments` and returns its exit status."""
    return main(["train", *map(str, arguments)])


def run_command(name, *arguments):
    """Runs `resflax NAME` with `arguments` and returns its exit status."""
    return main([name, *map(str, arguments)])
