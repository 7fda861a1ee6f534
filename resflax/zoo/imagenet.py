"""ImageNet's networks: He et al. 2015 (table 1) and 2016, under torchvision's and timm's names."""

from resflax.nn import Spec

_BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

SPECS: dict[str, Spec] = {
    # The nets that everybody has weights for: bottlenecks are v1.5.
    **{f"resnet{d}": Spec(n, block="basic") for d, n in _BASIC.items()},
    **{f"resnet{d}": Spec(n) for d, n in _BOTTLENECK.items()},
    "resnet200": Spec((3, 24, 36, 3)),
    # The paper's plain twins (figure 3, middle).
    **{f"plain{d}": Spec(n, block="basic", shortcut="none") for d, n in _BASIC.items()},
    # The paper's own bottlenecks, with the stride on the first 1x1.
    **{f"resnet{d}_v1": Spec(n, block="bottleneck_v1") for d, n in _BOTTLENECK.items()},
    # Pre-activation (2016), as timm has it.
    **{f"resnetv2_{d}": Spec(n, block="basic", preact=True) for d, n in _BASIC.items()},
    **{f"resnetv2_{d}": Spec(n, preact=True) for d, n in _BOTTLENECK.items()},
}
