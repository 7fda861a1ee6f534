"""Nets whose branches scale their channels: SE (Hu et al. 2017) and ECA (Wang et al. 2019)."""

from typing import Any

from resflax.nn import Spec
from resflax.zoo import pruned
from resflax.zoo.resnet import D, T, resnet
from resflax.zoo.resnext import groups_of

SE: dict[str, Any] = {"attention": "se"}
ECA: dict[str, Any] = {"attention": "eca"}
AA: dict[str, Any] = {"antialias": "average", **D}

SPECS: dict[str, Spec] = {
    "senet154": resnet(
        152, block="bottleneck_senet", shortcut="B3", stem="deep", stem_width=128,
        **groups_of("64x4d"), **SE,
    ),
    **{f"seresnet{d}": resnet(d, **SE) for d in (18, 34, 50, 101, 152)},
    **{f"seresnet{d}d": resnet(d, **SE, **D) for d in (152, 200, 269)},
    "seresnet50t": resnet(50, **SE, **T),
    "seresnetaa50d": resnet(50, **SE, **AA),
    "seresnext26d_32x4d": resnet(26, **groups_of("32x4d"), **SE, **D),
    "seresnext26t_32x4d": resnet(26, **groups_of("32x4d"), **SE, **T),
    "seresnext50_32x4d": resnet(50, **groups_of("32x4d"), **SE),
    **{
        f"seresnext101_{template}": resnet(101, **groups_of(template), **SE)
        for template in ("32x4d", "32x8d", "64x4d")
    },
    "seresnext101d_32x8d": resnet(101, **groups_of("32x8d"), **SE, **D),
    "seresnextaa101d_32x8d": resnet(101, **groups_of("32x8d"), **SE, **AA),
    "seresnextaa201d_32x8d": resnet(
        200, depths=(3, 24, 36, 4), stem_width=128, **groups_of("32x8d"), **SE, **AA
    ),
    **{f"ecaresnet{d}t": resnet(d, **ECA, **T) for d in (26, 50)},
    **{f"ecaresnet{d}d": resnet(d, **ECA, **D) for d in (50, 101, 200, 269)},
    "ecaresnet50d_pruned": resnet(50, pruned=pruned.ECARESNET50D, **ECA, **D),
    "ecaresnet101d_pruned": resnet(101, pruned=pruned.ECARESNET101D, **ECA, **D),
    "ecaresnetlight": Spec((1, 1, 11, 3), shortcut="D", **ECA),
    "ecaresnext26t_32x4d": resnet(26, **groups_of("32x4d"), **ECA, **T),
    "ecaresnext50t_32x4d": resnet(50, **groups_of("32x4d"), **ECA, **T),
}  # fmt: skip
