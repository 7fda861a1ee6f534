"""Trains on a CPU with the batch norm of accelerators; takes the arguments of `train.py`.

In bfloat16, accelerators compute a 1x1 convolution and its batch norm as one
(`resflax/nn/pointwise.py`), CPUs one after the other. Comparing the results of this script with
those of `train.py` shows whether networks train as well. From the root of the repository:

    PYTHONPATH=. python tools/train_fused.py --config=configs/digits_ensemble.py \
      --config.spec.block=bottleneck --config.dtype=bfloat16
"""

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

from resflax.cli.main import entry


def choose_default(*args: Any, default: Callable[..., Any], **_: Any) -> Any:
    """Stands in for `lax.platform_dependent`: computes what platforms without a name get."""
    return default(*args)


if __name__ == "__main__":
    with mock.patch("jax.lax.platform_dependent", choose_default):
        entry(["train", *sys.argv[1:]])
