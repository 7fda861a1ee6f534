"""Corruptions of images as pure functions of (key, image, severity), for `jit` and `vmap`.

Hendrycks and Dietterich 2019 (arXiv:1903.12261); their parameters for images of 32 and 224 pixels.
"""

from resflax.data.corruptions.table import CORRUPTIONS as CORRUPTIONS
from resflax.data.corruptions.table import SEVERITIES as SEVERITIES
from resflax.data.corruptions.table import Corruption as Corruption
from resflax.data.corruptions.table import corrupt_batch as corrupt_batch
from resflax.data.corruptions.table import table_side as table_side
