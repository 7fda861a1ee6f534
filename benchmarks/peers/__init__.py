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
    "resflax:plain": Contender("resflax_net", "jax", road="plain"),
    "torch": Contender("torch_net", "torch"),
    "torch.compile": Contender("torch_net", "torch", {"compiled": True}),
    "flax": Contender("flax_net", "flax"),
}

# Not networks, but measured by the same bursts.
METERS = {
    "gemm": Contender("gemm", "numpy"),
    "input": Contender("pipeline", "numpy"),
}
