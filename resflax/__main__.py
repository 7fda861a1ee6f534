"""The command line: `python -m resflax list | info | data | ...`."""

import importlib
import sys

from resflax.cli.flags import report
from resflax.errors import unknown

# The function that takes each command's arguments, and what the command does.
COMMANDS = {
    "list": ("resflax.cli.models:list_main", "the networks, by name"),
    "info": ("resflax.cli.models:info_main", "a network's parts, parameters and multiply-adds"),
    "data": ("resflax.cli.data:main", "sets made ready to train on, and looked at"),
    "convert": ("resflax.cli.weights:convert_main", "weights of torch to ours and back"),
    "predict": ("resflax.cli.weights:predict_main", "the five most probable classes of an image"),
    "doctor": ("resflax.cli.doctor:main", "whether this machine gives the same results anyhow"),
    "study": ("resflax.cli.study:main", "the papers' experiments"),
}


def main() -> None:
    """Hands the arguments to the command that the first of them names."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(f"usage: python -m resflax {{{','.join(COMMANDS)}}} ... (--help tells more)\n")
        print("\n".join(f"  {name:9}{what}" for name, (_, what) in COMMANDS.items()))
        return
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    module, function = COMMANDS[command][0].split(":")
    getattr(importlib.import_module(module), function)(arguments)


if __name__ == "__main__":
    sys.exit(report(main))
