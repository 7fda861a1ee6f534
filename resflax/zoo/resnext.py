"""ResNeXt (Xie et al. 2016, arXiv:1611.05431): `32x4d` is 32 groups of 4 channels."""

from resflax.nn import Spec
from resflax.zoo.resnet import RESNET_D, resnet_spec


def parse_groups(template: str) -> dict[str, int]:
    """Returns the fields of a spec that a template such as "32x4d" stands for.

    >>> parse_groups("32x4d")
    {'groups': 32, 'base_width': 4}
    """
    groups, width = template.removesuffix("d").split("x")
    return {"groups": int(groups), "base_width": int(width)}


SPECS: dict[str, Spec] = {
    "resnext50_32x4d": resnet_spec(50, **parse_groups("32x4d")),
    "resnext50d_32x4d": resnet_spec(50, **parse_groups("32x4d"), **RESNET_D),
    **{
        f"resnext101_{template}": resnet_spec(101, **parse_groups(template))
        for template in ("32x4d", "32x8d", "32x16d", "32x32d", "64x4d")
    },
}
