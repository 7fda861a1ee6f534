"""Wide ResNet-28-10 on CIFAR-10 (Zagoruyko and Komodakis 2016, section 3).

Commands, the first one once (it needs TensorFlow)::

    resflax data prepare cifar10
    python train.py --config=configs/cifar10_wrn28_10.py

Batch 128, learning rate 0.1 times 0.2 at epochs 60, 120 and 160 of 200, weight decay 5e-4, Nesterov
momentum 0.9, four pixels of padding before a random crop, random flips. The paper reports a test
error of 4.00 %.

Measured: not run.
"""

from ml_collections import ConfigDict

from resflax.train import default_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = default_config()
    config.model = "wrn28_10"
    config.dataset = "cifar10"
    config.batch_size = 128
    config.epochs = 200
    config.learning_rate = 0.1
    config.schedule = "step"
    config.decay_epochs = (60, 120, 160)
    config.decay_rate = 0.2
    config.weight_decay = 5e-4
    config.decay_mask = "all"
    config.data.pad_crop = 4
    config.data.flip = True
    config.log_every_steps = 100
    return config
