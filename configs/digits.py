"""ResNet-20 on handwritten digits, from nothing to the end in a minute on a laptop.

python train.py --config=configs/digits.py --workdir=runs/digits
"""

from ml_collections import ConfigDict

from resflax.train import default_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = default_config()
    config.model = "cifar_resnet20"
    config.dataset = "digits"
    config.epochs = 25
    config.batch_size = 64
    config.learning_rate = 0.1
    config.warmup_epochs = 1.0
    config.weight_decay = 1e-3
    config.label_smoothing = 0.1
    config.data.pad_crop = 1
    return config
