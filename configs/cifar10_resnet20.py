"""ResNet-20 on CIFAR-10 as in the paper (He et al. 2015, section 4.2).

Command, once the set is prepared (`python -m resflax data prepare cifar10`)::

    python train.py --config=configs/cifar10_resnet20.py

Batch 128, learning rate 0.1 divided by ten at 32k and 48k of 64k steps, weight decay 1e-4 on all
parameters, momentum 0.9 without Nesterov, four pixels of padding before a random crop, random
flips. The paper reports a test error of 8.75 %.

Measured: not run to its end, nor on the original images. 20 epochs on CIFAR-10 as JPEG are in
docs/results.md, beside PyTorch.
"""

from ml_collections import ConfigDict

from resflax.train.recipes import paper_cifar10


def get_config() -> ConfigDict:
    """Returns the recipe."""
    return paper_cifar10("cifar_resnet20")
