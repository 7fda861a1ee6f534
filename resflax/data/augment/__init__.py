"""Pure augmentation functions on stored images, for `jit` and `vmap`.

The functions take a key and one image; `make_augment` and `make_mix` return functions of a batch
and one key per example. Every random transform has a deterministic counterpart.
"""

from resflax.data.augment.auto import auto_augment as auto_augment
from resflax.data.augment.crop import inception_crop as inception_crop
from resflax.data.augment.crop_flip import alternating_flip as alternating_flip
from resflax.data.augment.crop_flip import flip as flip
from resflax.data.augment.crop_flip import flip_parity as flip_parity
from resflax.data.augment.crop_flip import pad_crop as pad_crop
from resflax.data.augment.erase import cutout as cutout
from resflax.data.augment.erase import random_erasing as random_erasing
from resflax.data.augment.jitter import color_jitter as color_jitter
from resflax.data.augment.mix import Mix as Mix
from resflax.data.augment.mix import check_mix as check_mix
from resflax.data.augment.mix import make_mix as make_mix
from resflax.data.augment.pipeline import TRANSFORMS as TRANSFORMS
from resflax.data.augment.pipeline import Augment as Augment
from resflax.data.augment.pipeline import check_augment as check_augment
from resflax.data.augment.pipeline import make_augment as make_augment
from resflax.data.augment.pixels import normalize as normalize
from resflax.data.augment.rand import rand_augment as rand_augment
