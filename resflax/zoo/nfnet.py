"""Normalizer-free ResNets (Brock et al. 2021, arXiv:2101.08692), with timm's names."""

from typing import Any

from resflax.nn import Spec
from resflax.zoo.resnet import resnet_spec

# Pre-activation without norms, biases instead, and a branch times 0.2. timm projects by pooling.
NORMALIZER_FREE: dict[str, Any] = {
    "preact": True,
    "shortcut": "D",
    "gate": "normalizer_free",
    "norm": "none",
    "conv": "scaled_standardized",
}

SPECS: dict[str, Spec] = {
    f"nf_resnet{depth}": resnet_spec(depth, **NORMALIZER_FREE) for depth in (26, 50, 101)
}
