"""The contenders: who can be named on the command line, and the module that each is written in.

A module has `make(task, **options) -> Run`; see `Run` in `benchmarks/peers/run.py`.
"""

from typing import Any, NamedTuple


class Contender(NamedTuple):
    """One row of `CONTENDERS`.

    Attributes:
      module: under `benchmarks.peers`.
      needs: the package that must be installed.
      options: of its `make`.
      road: the value of RESFLAX_CONV in its process; "" for unset.
    """

    module: str
    needs: str
    options: dict[str, Any] = {}  # noqa: RUF012
    road: str = ""


CONTENDERS = {
    "resflax": Contender("resflax_net", "jax"),
    "resflax:cpu": Contender("resflax_net", "jax", road="cpu"),
    "resflax:onednn": Contender("resflax_net", "jax", road="onednn"),
    "resflax:xla": Contender("resflax_net", "jax", road="xla"),
    "torch": Contender("torch_net", "torch"),
    "torch.compile": Contender("torch_net", "torch", {"compiled": True}),
    "flax": Contender("flax_net", "flax"),
}

# Not networks to be compared, but measured in the same way; those of `Parts` in stretches.
METERS = {
    "gemm": Contender("gemm", "numpy"),
    "decoders": Contender("decoders", "PIL"),
    "resflax's loader": Contender("loaders", "grain", {"library": "resflax"}),
    "torch's loader": Contender("loaders", "torch", {"library": "torch"}),
    "roads": Contender("roads", "jax"),
}

# What `input` compares: a batch that stays, and the trainer's ways of bringing one.
FIXED, DEVICE, HOST = "fixed batch", "device road", "host road"
SMALL_ROADS = (FIXED, DEVICE, HOST)
LARGE_ROADS = (FIXED, f"{HOST}, 1 worker", f"{HOST}, 2 workers")
