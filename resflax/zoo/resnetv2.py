"""Pre-activation ResNets for ImageNet (He et al. 2016, arXiv:1603.05027), with timm's names."""

from resflax.nn import Spec
from resflax.zoo.resnet import BASIC_DEPTHS, RESNET_D, RESNET_T, resnet_spec


def bit_spec(depth: int, factor: int) -> Spec:
    """Returns BiT: widths times `factor`, standardized kernels (Kolesnikov et al. 2019)."""
    return resnet_spec(
        depth,
        preact=True,
        widths=tuple(factor * width for width in (64, 128, 256, 512)),
        stem="bit",
        stem_width=64 * factor,
        norm="group",
        conv="standardized",
    )


DEPTHS = (*BASIC_DEPTHS, 50, 101, 152)
BIT = {"50x1": (50, 1), "50x3": (50, 3), "101x1": (101, 1), "101x3": (101, 3)} | {
    "152x2": (152, 2),
    "152x4": (152, 4),
}

SPECS: dict[str, Spec] = {
    **{f"resnetv2_{d}": resnet_spec(d, preact=True) for d in DEPTHS},
    **{f"resnetv2_{d}d": resnet_spec(d, preact=True, **RESNET_D) for d in DEPTHS},
    "resnetv2_50t": resnet_spec(50, preact=True, **RESNET_T),
    "resnetv2_50d_gn": resnet_spec(50, preact=True, norm="group", **RESNET_D),
    "resnetv2_50d_evos": resnet_spec(50, preact=True, norm="evonorm_s0", **RESNET_D),
    "resnetv2_50d_frn": resnet_spec(50, preact=True, norm="frn_tlu", **RESNET_D),
    **{f"resnetv2_{name}_bit": bit_spec(*row) for name, row in BIT.items()},
}
