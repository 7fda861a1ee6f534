"""Networks with channel attention: SE (Hu et al. 2017) and ECA (Wang et al. 2019)."""

from typing import Any

from resflax.nn import Spec
from resflax.zoo import pruned
from resflax.zoo.resnet import RESNET_D, RESNET_T, resnet_spec
from resflax.zoo.resnext import parse_groups

SE: dict[str, Any] = {"attention": "se"}
ECA: dict[str, Any] = {"attention": "eca"}
AA: dict[str, Any] = {"antialias": "average", **RESNET_D}

SPECS: dict[str, Spec] = {
    "senet154": resnet_spec(
        152, block="bottleneck_senet", shortcut="B3", stem="deep", stem_width=128,
        **parse_groups("64x4d"), **SE,
    ),
    **{f"seresnet{d}": resnet_spec(d, **SE) for d in (18, 34, 50, 101, 152)},
    **{f"seresnet{d}d": resnet_spec(d, **SE, **RESNET_D) for d in (152, 200, 269)},
    "seresnet50t": resnet_spec(50, **SE, **RESNET_T),
    "seresnetaa50d": resnet_spec(50, **SE, **AA),
    "seresnext26d_32x4d": resnet_spec(26, **parse_groups("32x4d"), **SE, **RESNET_D),
    "seresnext26t_32x4d": resnet_spec(26, **parse_groups("32x4d"), **SE, **RESNET_T),
    "seresnext50_32x4d": resnet_spec(50, **parse_groups("32x4d"), **SE),
    **{
        f"seresnext101_{template}": resnet_spec(101, **parse_groups(template), **SE)
        for template in ("32x4d", "32x8d", "64x4d")
    },
    "seresnext101d_32x8d": resnet_spec(101, **parse_groups("32x8d"), **SE, **RESNET_D),
    "seresnextaa101d_32x8d": resnet_spec(101, **parse_groups("32x8d"), **SE, **AA),
    "seresnextaa201d_32x8d": resnet_spec(
        200, depths=(3, 24, 36, 4), stem_width=128, **parse_groups("32x8d"), **SE, **AA
    ),
    **{f"ecaresnet{d}t": resnet_spec(d, **ECA, **RESNET_T) for d in (26, 50)},
    **{f"ecaresnet{d}d": resnet_spec(d, **ECA, **RESNET_D) for d in (50, 101, 200, 269)},
    "ecaresnet50d_pruned": resnet_spec(50, pruned=pruned.ECARESNET50D, **ECA, **RESNET_D),
    "ecaresnet101d_pruned": resnet_spec(101, pruned=pruned.ECARESNET101D, **ECA, **RESNET_D),
    "ecaresnetlight": Spec((1, 1, 11, 3), shortcut="D", **ECA),
    "ecaresnext26t_32x4d": resnet_spec(26, **parse_groups("32x4d"), **ECA, **RESNET_T),
    "ecaresnext50t_32x4d": resnet_spec(50, **parse_groups("32x4d"), **ECA, **RESNET_T),
}  # fmt: skip
