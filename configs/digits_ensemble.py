"""Five networks on the embedded handwritten digits, trained as one program.

Command::

    for seed in 0 5 10; do
      python train.py --config=configs/digits_ensemble.py --config.seed=$seed --workdir=runs/$seed
    done
"""

from ml_collections import ConfigDict

from resflax.train import default_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = default_config()
    config.model = "cifar_resnet8"
    config.dataset = "digits"
    config.epochs = 25
    config.batch_size = 64
    config.learning_rate = 0.1
    config.warmup_epochs = 1.0
    config.weight_decay = 5e-4
    config.data.pad_crop = 1
    config.ensemble.size = 5
    return config
