"""Data-parallel engines, the engine of ensembles, and several processes as one run."""

from resflax.distributed.engines import Engine as Engine
from resflax.distributed.engines import environment as environment
from resflax.distributed.engines import make_engine as make_engine
from resflax.distributed.ensemble_engine import EnsembleEngine as EnsembleEngine
from resflax.distributed.processes import DistributedConfig as DistributedConfig
