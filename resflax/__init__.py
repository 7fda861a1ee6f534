"""Deep residual networks in JAX and Flax.

Importing this package has no side effects on the process, and imports nothing else: its names are
imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resflax.errors import UserError as UserError
    from resflax.runtime import tune_malloc as tune_malloc
    from resflax.weights import load_ensemble as load_ensemble
    from resflax.weights import load_pretrained as load_pretrained
    from resflax.zoo import create_model as create_model
    from resflax.zoo import get_spec as get_spec
    from resflax.zoo import list_models as list_models

__version__ = "0.2.0"

_MODULES = {
    "UserError": "resflax.errors",
    "create_model": "resflax.zoo",
    "get_spec": "resflax.zoo",
    "list_models": "resflax.zoo",
    "load_ensemble": "resflax.weights",
    "load_pretrained": "resflax.weights",
    "tune_malloc": "resflax.runtime",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
