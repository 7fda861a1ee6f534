"""Commands of `resflax` that tests run in their own process."""

from resflax.cli.main import run_command
from resflax.cli.train import _train


def run_train(*arguments):
    """Runs `resflax train` without exiting, and returns its exit status."""
    return run_command(lambda: _train([*arguments]))
