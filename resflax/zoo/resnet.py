"""ResNets for ImageNet (He et al. 2015, table 1) and variants, with torchvision's and timm's names.

The letters are those of the "bag of tricks" (Tong He et al. 2018, arXiv:1812.01187) and timm: c has
a deep stem, d also pooled shortcuts, s a wider deep stem, t the shortcuts of d and a tiered stem.
"""

from typing import Any

from resflax.nn import Spec

BASIC_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK_DEPTHS = {
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}
RESNET_C: dict[str, Any] = {"stem": "deep"}
RESNET_D: dict[str, Any] = {"stem": "deep", "shortcut": "D"}
RESNET_S: dict[str, Any] = {"stem": "deep", "stem_width": 128}
RESNET_T: dict[str, Any] = {"stem": "tiered", "shortcut": "D"}


def resnet_spec(depth: int, **fields: Any) -> Spec:
    """Returns a ResNet: basic blocks for depths 18 and 34, else bottlenecks (v1.5)."""
    if depth in BASIC_DEPTHS:
        return Spec(**{"depths": BASIC_DEPTHS[depth], "block": "basic", **fields})
    return Spec(**{"depths": BOTTLENECK_DEPTHS[depth], **fields})


RS_DEPTHS = {
    50: BOTTLENECK_DEPTHS[50],
    101: BOTTLENECK_DEPTHS[101],
    152: BOTTLENECK_DEPTHS[152],
    200: BOTTLENECK_DEPTHS[200],
    270: (4, 29, 53, 4),
    350: (4, 36, 72, 4),
    420: (4, 44, 87, 4),
}

SPECS: dict[str, Spec] = {
    **{f"resnet{d}": resnet_spec(d) for d in (18, 34, 26, 50, 101, 152, 200)},
    **{f"resnet{d}c": resnet_spec(d, **RESNET_C) for d in (50, 101, 152)},
    **{f"resnet{d}d": resnet_spec(d, **RESNET_D) for d in (18, 34, 26, 50, 101, 152, 200)},
    **{f"resnet{d}s": resnet_spec(d, **RESNET_S) for d in (50, 101, 152)},
    **{f"resnet{d}t": resnet_spec(d, **RESNET_T) for d in (26, 50)},
    "resnet10t": Spec((1, 1, 1, 1), block="basic", **RESNET_T),
    "resnet14t": Spec((1, 1, 1, 1), **RESNET_T),
    "resnet50_gn": resnet_spec(50, norm="group"),
    # Twice the inner channels (Zagoruyko and Komodakis 2016, arXiv:1605.07146).
    **{f"wide_resnet{d}_2": resnet_spec(d, base_width=128) for d in (50, 101)},
    # Zhang 2019, arXiv:1904.11486; "aa" uses average pooling.
    **{f"resnetblur{d}": resnet_spec(d, antialias="blur") for d in (18, 50)},
    **{f"resnetblur{d}d": resnet_spec(d, antialias="blur", **RESNET_D) for d in (50, 101)},
    "resnetaa50": resnet_spec(50, antialias="average"),
    **{f"resnetaa{d}d": resnet_spec(d, antialias="average", **RESNET_D) for d in (34, 50, 101)},
    # Bello et al. 2021, arXiv:2103.07579.
    **{
        f"resnetrs{d}": Spec(n, stem="rs", shortcut="D", attention="se_rs")
        for d, n in RS_DEPTHS.items()
    },
    # timm's smallest network, for tests.
    "test_resnet": Spec(
        (1, 1, 1, 1),
        (32, 48, 48, 96),
        ("basic", "basic", "bottleneck", "basic"),
        stem_width=32,
        **RESNET_D,
    ),
    # The paper's plain networks (figure 3, middle).
    **{f"plain{d}": resnet_spec(d, shortcut="none") for d in BASIC_DEPTHS},
    # The paper's bottlenecks, with the stride on the first 1x1 convolution.
    **{f"resnet{d}_v1": resnet_spec(d, block="bottleneck_v1") for d in (50, 101, 152)},
}
