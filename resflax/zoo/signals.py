"""ResNets for signals `(n, length, channels)`, under names of resflax's own."""

from resflax.nn import Spec
from resflax.zoo.resnet import resnet_spec

SPECS: dict[str, Spec] = {f"resnet1d{d}": resnet_spec(d, dimensions=1) for d in (18, 34, 50)}
