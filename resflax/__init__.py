"""Deep residual networks in JAX and Flax."""

from resflax.errors import UserError as UserError
from resflax.memory import tune_malloc as tune_malloc
from resflax.zoo import create_model as create_model
from resflax.zoo import get_spec as get_spec
from resflax.zoo import list_models as list_models

__version__ = "0.1.0"

tune_malloc()
