"""Channels of timm's pruned ECA-ResNets (Aflalo et al. 2020, arXiv:2002.08258).

Each stage has its output channels, shared by its blocks, and a pair of inner channels per block.
"""

from resflax.nn.stages import Pruned


def _stages(*stages: tuple[int, tuple[tuple[int, int], ...]]) -> Pruned:
    return tuple(tuple((*inner, out) for inner in blocks) for out, blocks in stages)


ECARESNET50D = _stages(
    (19, ((47, 18), (52, 22), (64, 35))),
    (171, ((85, 37), (107, 80), (120, 85), (125, 87))),
    (818, ((198, 126), (255, 232), (256, 233), (253, 235), (256, 225), (256, 239))),
    (2022, ((492, 237), (512, 500), (512, 490))),
)
ECARESNET101D = _stages(
    (26, ((45, 25), (53, 20), (60, 27))),
    (142, ((81, 24), (93, 49), (102, 54), (122, 78))),
    (
        278,
        (
            (101, 25),
            (239, 160),
            (234, 156),
            (250, 176),
            (253, 191),
            (251, 175),
            (230, 128),
            (244, 154),
            (244, 159),
            (238, 97),
            (244, 149),
            (253, 181),
            (245, 119),
            (255, 216),
            (256, 201),
            (253, 149),
            (254, 141),
            (256, 190),
            (256, 217),
            (255, 156),
            (256, 155),
            (256, 232),
            (256, 214),
        ),
    ),
    (2042, ((499, 289), (512, 512), (512, 502))),
)
