"""ResNeXt (Xie et al. 2016, arXiv:1611.05431): `32x4d` is 32 groups of 4 channels."""

from resflax.nn import Spec
from resflax.zoo.resnet import D, resnet


def groups_of(template: str) -> dict[str, int]:
    """The fields that a template means.

    >>> groups_of("32x4d")
    {'groups': 32, 'base_width': 4}
    """
    groups, width = template.removesuffix("d").split("x")
    return {"groups": int(groups), "base_width": int(width)}


SPECS: dict[str, Spec] = {
    "resnext50_32x4d": resnet(50, **groups_of("32x4d")),
    "resnext50d_32x4d": resnet(50, **groups_of("32x4d"), **D),
    **{
        f"resnext101_{template}": resnet(101, **groups_of(template))
        for template in ("32x4d", "32x8d", "32x16d", "32x32d", "64x4d")
    },
}
