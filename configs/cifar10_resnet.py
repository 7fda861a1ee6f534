"""ResNets on CIFAR-10 as in the paper (He et al. 2015, section 4.2); its argument is the depth.

Commands, the first one once (it needs TensorFlow)::

    resflax data prepare cifar10
    python train.py --config=configs/cifar10_resnet.py:56

Batch 128, learning rate 0.1 divided by ten at 32k and 48k of 64k steps, weight decay 1e-4 on all
parameters, momentum 0.9 without Nesterov, four pixels of padding before a random crop, random
flips. The paper reports test errors of 8.75, 7.51, 7.17, 6.97 and 6.61 +- 0.16 % for the depths 20,
32, 44, 56 and 110.

Measured: not run to the end, and not on the original images. docs/results.md has 20 epochs of
ResNet-20 on CIFAR-10 as JPEG, next to PyTorch.
"""

from ml_collections import ConfigDict

from resflax.train import default_config


def get_config(depth: str = "20") -> ConfigDict:
    """Returns the recipe for a depth of the form 6n + 2."""
    config = default_config()
    config.model = f"cifar_resnet{depth}"
    config.dataset = "cifar10"
    config.batch_size = 128
    config.epochs = 164  # 64k steps, and 62 more
    config.learning_rate = 0.1
    if depth == "110":
        config.warmup_epochs = 1.0  # the paper: 0.01 until the error is below 80 %
    config.schedule = "step"
    config.decay_epochs = (32_000 * 128 / 50_000, 48_000 * 128 / 50_000)
    config.weight_decay = 1e-4
    config.decay_mask = "all"
    config.nesterov = False
    config.data.pad_crop = 4
    config.data.flip = True
    config.log_every_steps = 100
    return config
