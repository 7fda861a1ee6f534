"""A ResNet for signals on synthetic electrocardiograms, in less than a minute on a laptop.

Command::

    python train.py --config=configs/ecg.py --workdir=runs/ecg

Measured on two cores of an AMD EPYC that other programs shared (jax 0.10.2, oneDNN): test accuracy
0.9680 (of 500 signals) in 53 s, 29 s of CPU time.
"""

from ml_collections import ConfigDict

from resflax.train import default_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = default_config()
    config.model = "resnet1d18"
    config.dataset = "ecg"
    config.spec.widths = (16, 32, 64, 128)
    config.spec.stem_width = 16
    config.epochs = 12
    config.batch_size = 64
    config.learning_rate = 0.1
    config.warmup_epochs = 1.0
    config.weight_decay = 5e-4
    config.data.pad_crop = 16
    config.data.noise = 0.1
    return config
