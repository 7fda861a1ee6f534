"""Named architectures: one file of specs per family, and the registry."""

from resflax.zoo.registry import create_model as create_model
from resflax.zoo.registry import get_spec as get_spec
from resflax.zoo.registry import list_models as list_models
