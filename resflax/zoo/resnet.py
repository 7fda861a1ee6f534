"""ResNets for ImageNet: He et al. 2015 (table 1) and kin, under torchvision's and timm's names.

The letters are those of the "bag of tricks" (Tong He et al. 2018, arXiv:1812.01187) and timm: c, a
deep stem; d, also pooled shortcuts; s, a wider deep stem; t, d with a tiered stem.
"""

from typing import Any

from resflax.nn import Spec

BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK = {
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}
C: dict[str, Any] = {"stem": "deep"}
D: dict[str, Any] = {"stem": "deep", "shortcut": "D"}
S: dict[str, Any] = {"stem": "deep", "stem_width": 128}
T: dict[str, Any] = {"stem": "tiered", "shortcut": "D"}


def resnet(depth: int, **fields: Any) -> Spec:
    """The net of that many layers: basic blocks up to 34, bottlenecks (v1.5) from there on."""
    if depth in BASIC:
        return Spec(**{"depths": BASIC[depth], "block": "basic", **fields})
    return Spec(**{"depths": BOTTLENECK[depth], **fields})


RS = {
    50: BOTTLENECK[50],
    101: BOTTLENECK[101],
    152: BOTTLENECK[152],
    200: BOTTLENECK[200],
    270: (4, 29, 53, 4),
    350: (4, 36, 72, 4),
    420: (4, 44, 87, 4),
}

SPECS: dict[str, Spec] = {
    **{f"resnet{d}": resnet(d) for d in (18, 34, 26, 50, 101, 152, 200)},
    **{f"resnet{d}c": resnet(d, **C) for d in (50, 101, 152)},
    **{f"resnet{d}d": resnet(d, **D) for d in (18, 34, 26, 50, 101, 152, 200)},
    **{f"resnet{d}s": resnet(d, **S) for d in (50, 101, 152)},
    **{f"resnet{d}t": resnet(d, **T) for d in (26, 50)},
    "resnet10t": Spec((1, 1, 1, 1), block="basic", **T),
    "resnet14t": Spec((1, 1, 1, 1), **T),
    "resnet50_gn": resnet(50, norm="group"),
    # Inner channels twice as many (Zagoruyko and Komodakis 2016, arXiv:1605.07146).
    **{f"wide_resnet{d}_2": resnet(d, base_width=128) for d in (50, 101)},
    # Zhang 2019, arXiv:1904.11486; "aa" averages instead.
    **{f"resnetblur{d}": resnet(d, antialias="blur") for d in (18, 50)},
    **{f"resnetblur{d}d": resnet(d, antialias="blur", **D) for d in (50, 101)},
    "resnetaa50": resnet(50, antialias="average"),
    **{f"resnetaa{d}d": resnet(d, antialias="average", **D) for d in (34, 50, 101)},
    # Bello et al. 2021, arXiv:2103.07579.
    **{f"resnetrs{d}": Spec(n, stem="rs", shortcut="D", attention="se_rs") for d, n in RS.items()},
    # timm's smallest, for tests.
    "test_resnet": Spec(
        (1, 1, 1, 1),
        (32, 48, 48, 96),
        ("basic", "basic", "bottleneck", "basic"),
        stem_width=32,
        **D,
    ),
    # The paper's plain twins (figure 3, middle).
    **{f"plain{d}": resnet(d, shortcut="none") for d in BASIC},
    # The paper's own bottlenecks, with the stride on the first 1x1.
    **{f"resnet{d}_v1": resnet(d, block="bottleneck_v1") for d in (50, 101, 152)},
}
