"""Pre-activation ResNets for ImageNet (He et al. 2016, arXiv:1603.05027) under timm's names."""

from resflax.nn import Spec
from resflax.zoo.resnet import BASIC, D, T, resnet


def bit(depth: int, factor: int) -> Spec:
    """BiT: every width times `factor`, standardised kernels (Kolesnikov et al. 2019)."""
    return resnet(
        depth,
        preact=True,
        widths=tuple(factor * width for width in (64, 128, 256, 512)),
        stem="bit",
        stem_width=64 * factor,
        norm="group",
        conv="standardized",
    )


DEPTHS = (*BASIC, 50, 101, 152)
BIT = {"50x1": (50, 1), "50x3": (50, 3), "101x1": (101, 1), "101x3": (101, 3)} | {
    "152x2": (152, 2),
    "152x4": (152, 4),
}

SPECS: dict[str, Spec] = {
    **{f"resnetv2_{d}": resnet(d, preact=True) for d in DEPTHS},
    **{f"resnetv2_{d}d": resnet(d, preact=True, **D) for d in DEPTHS},
    "resnetv2_50t": resnet(50, preact=True, **T),
    "resnetv2_50d_gn": resnet(50, preact=True, norm="group", **D),
    "resnetv2_50d_evos": resnet(50, preact=True, norm="evonorm_s0", **D),
    "resnetv2_50d_frn": resnet(50, preact=True, norm="frn_tlu", **D),
    **{f"resnetv2_{name}_bit": bit(*row) for name, row in BIT.items()},
}
