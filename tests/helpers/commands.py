"""Runs command-line entry points inside the test process."""

import re

from resflax.cli.main import main


def run_train(*arguments):
    """Runs `resflax train` with `arguments` and returns its exit status."""
    return main(["train", *map(str, arguments)])


def run_command(name, *arguments):
    """Runs `resflax NAME` with `arguments` and returns its exit status."""
    return main([name, *map(str, arguments)])


def assert_one_line(message, status, out, err):
    """Asserts that a command failed with one line that matches `message`."""
    assert status == 2
    assert re.match("error: .*" + message, err), err
    assert err.count("\n") == 1
    assert out == ""
