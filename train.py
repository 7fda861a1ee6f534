"""Trains a residual network: `python train.py --config=configs/digits.py --workdir=runs/digits`.

The same as `resflax train`; see `python train.py --help`.
"""

import sys

from resflax.cli.main import entry

if __name__ == "__main__":
    entry(["train", *sys.argv[1:]])
