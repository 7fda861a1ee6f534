"""ResNets for clips (Tran et al. 2018, arXiv:1711.11248), with torchvision's names.

Clips are `(n, frames, height, width, channels)`. The weights of torchvision are for 400 classes of
Kinetics-400 and clips of 16 frames of 112x112 pixels.
"""

from typing import Any

from resflax.nn import Spec

CLIP: dict[str, Any] = {"dimensions": 3, "stem": "video", "num_classes": 400}

SPECS: dict[str, Spec] = {
    "r3d_18": Spec((2, 2, 2, 2), block="basic", **CLIP),
    # Convolutions over time in the first stage only.
    "mc3_18": Spec((2, 2, 2, 2), block=("basic", *["basic_spatial"] * 3), **CLIP),
    "r2plus1d_18": Spec((2, 2, 2, 2), block="basic_2plus1d", **{**CLIP, "stem": "video_2plus1d"}),
}
