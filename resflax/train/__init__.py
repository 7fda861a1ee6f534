"""Train state and step, the config of a run, the trainer and its loop.

The names are imported when they are first used, so that `--help` starts fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resflax.distributed import make_engine as make_engine
    from resflax.run.manifest import params_sha256 as params_sha256
    from resflax.run.progress import RunProgress as RunProgress
    from resflax.run.workdir import Workdir as Workdir
    from resflax.train.config import default_config as default_config
    from resflax.train.config_rules import check_config as check_config
    from resflax.train.ensemble import stack_states as stack_states
    from resflax.train.ensemble import unstack_states as unstack_states
    from resflax.train.eval_step import make_eval_step as make_eval_step
    from resflax.train.launch import fit as fit
    from resflax.train.losses import cross_entropy as cross_entropy
    from resflax.train.optim import make_optimizer as make_optimizer
    from resflax.train.precise_bn import recompute_batch_stats as recompute_batch_stats
    from resflax.train.run import Run as Run
    from resflax.train.run_builder import build as build
    from resflax.train.schedules import make_schedule as make_schedule
    from resflax.train.state import TrainState as TrainState
    from resflax.train.state import create_state as create_state
    from resflax.train.step import make_train_step as make_train_step
    from resflax.train.trainer import Trainer as Trainer

_MODULES = {
    "Run": "resflax.train.run",
    "RunProgress": "resflax.run.progress",
    "TrainState": "resflax.train.state",
    "Trainer": "resflax.train.trainer",
    "Workdir": "resflax.run.workdir",
    "build": "resflax.train.run_builder",
    "check_config": "resflax.train.config_rules",
    "create_state": "resflax.train.state",
    "cross_entropy": "resflax.train.losses",
    "default_config": "resflax.train.config",
    "fit": "resflax.train.launch",
    "make_engine": "resflax.distributed",
    "make_eval_step": "resflax.train.eval_step",
    "make_optimizer": "resflax.train.optim",
    "make_schedule": "resflax.train.schedules",
    "make_train_step": "resflax.train.step",
    "params_sha256": "resflax.run.manifest",
    "recompute_batch_stats": "resflax.train.precise_bn",
    "stack_states": "resflax.train.ensemble",
    "unstack_states": "resflax.train.ensemble",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
