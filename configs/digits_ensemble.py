"""Five networks on the embedded handwritten digits, trained as one program.

Command::

    for seed in 0 5 10; do
      python train.py --config=configs/digits_ensemble.py --config.seed=$seed --workdir=runs/$seed
    done

Measured with oneDNN (jax 0.10.2) for seeds 0, 5 and 10: test accuracy 1.0000, 1.0000, 0.9972 (mean
of the members 0.9906, 0.9950, 0.9944), NLL 0.0194, 0.0145, 0.0171 (mean of the members 0.0244,
0.0169, 0.0201), in 77, 53 and 52 s on two cores shared with other work.
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
