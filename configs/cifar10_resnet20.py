"""ResNet-20 on CIFAR-10 as in the paper (He et al. 2015, section 4.2).

Command, once the set is prepared (`python -m resflax data prepare cifar10`)::

    python train.py --config=configs/cifar10_resnet20.py

Batch 128, learning rate 0.1 divided by ten at 32k and 48k of 64k steps, weight decay 1e-4 on all
parameters, momentum 0.9 without Nesterov, four pixels of padding
before a random crop, random flips.
The paper reports a test error of 8.75 %.

Measured: not run.
"""

from ml_collections import ConfigDict

from resflax.train import default_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = default_config()
    config.model = "cifar_resnet20"
    config.dataset = "cifar10"
    config.batch_size = 128
    config.epochs = 164  # 64k steps, and 62 more
    config.learning_rate = 0.1
    config.schedule = "step"
    config.step_epochs = (32_000 * 128 / 50_000, 48_000 * 128 / 50_000)
    config.weight_decay = 1e-4
    config.decay_mask = "all"
    config.nesterov = False
    config.data.pad_crop = 4
    config.data.flip = True
    config.log_every_steps = 100
    return config
