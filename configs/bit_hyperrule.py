"""Fine-tunes BiT weights by the BiT-HyperRule (Kolesnikov et al. 2019, arXiv:1912.11370).

The argument after the colon is the number of training examples, on which steps and mixup depend.
Give a folder of images and the weights::

    resflax train --config=configs/bit_hyperrule.py:2040 --config.dataset=folder:flowers \
      --config.pretrained=timm/resnetv2_50x1_bit.goog_in21k

SGD with a batch of 512, a learning rate of 0.003, momentum 0.9 without Nesterov and no weight
decay; 500 steps for fewer than 20,000 examples, 10,000 for fewer than 500,000, else 20,000, with
mixup 0.1 in the last two; warm-up and three decays by ten as in bit_hyperrule.py and
bit_pytorch/train.py of github.com/google-research/big_transfer, one mixup weight a batch; images
are resized to 512, cropped to 480 and mirrored.

Different from there: evaluation is on the center 480x480, where the authors resize the whole image
to 480x480; for training they resize both sides to 512, here the shorter one. Images of less than
96x96 pixels need `--config.data.image_size=128 --config.data.crop_pct=0.8`, the authors' sizes.

Measured: not run. The paper reports, with weights of ImageNet-21k (BiT-M, ResNet-152x4), a top-1
accuracy of 85.4 % on ImageNet and 99.3 % on Oxford Flowers-102 (table 1).
"""

import math

from ml_collections import ConfigDict

from resflax.train import default_config

BATCH_SIZE = 512
# By the number of examples that is not reached: steps of the warm-up, the decays and the end.
STEPS: dict[float, tuple[int, ...]] = {
    20_000: (100, 200, 300, 400, 500),
    500_000: (500, 3000, 6000, 9000, 10_000),
    math.inf: (500, 6000, 12_000, 18_000, 20_000),
}


def get_config(examples: str = "50000") -> ConfigDict:
    """Returns the recipe for a number of training examples."""
    count = int(examples)
    warmup, *decays, end = next(steps for limit, steps in STEPS.items() if count < limit)
    config = default_config()
    config.model = ""  # that of the weights
    config.dataset = ""  # must be given
    config.epochs = math.ceil(end * BATCH_SIZE / count)
    config.batch_size = BATCH_SIZE
    config.learning_rate = 0.003
    config.schedule = "step"
    config.warmup_epochs = warmup * BATCH_SIZE / count
    config.decay_epochs = tuple(step * BATCH_SIZE / count for step in decays)
    config.nesterov = False
    config.weight_decay = 0.0
    config.reset_head = True
    config.data.image_size = 480
    config.data.crop_pct = 480 / 512
    config.data.interpolation = "bilinear"
    config.data.train_crop = "resize"
    config.data.flip = True
    if count >= 20_000:
        config.data.mixup = 0.1
        config.data.mixup_mode = "batch"
    return config
