"""Five ResNet-8 on Fashion-MNIST (Xiao et al. 2017), trained as one program.

A twentieth of the training split is held out, for calibration. About half an hour on two cores;
results are in docs/ensembles.md.

Commands, the first one once (it needs TensorFlow)::

    resflax data prepare fashion_mnist
    python train.py --config=configs/fashion_mnist_ensemble.py --workdir=runs/fashion_mnist_ensemble
    resflax evaluate runs/fashion_mnist_ensemble --ood=digits --out=runs/fashion_mnist_ensemble/ood
"""

from ml_collections import ConfigDict

from resflax.train import default_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = default_config()
    config.model = "cifar_resnet8"
    config.dataset = "fashion_mnist"
    config.epochs = 10
    config.batch_size = 128
    config.learning_rate = 0.1
    config.warmup_epochs = 1.0
    config.weight_decay = 5e-4
    config.data.pad_crop = 2
    config.data.flip = True
    config.data.validation = 0.05
    config.log_every_steps = 100
    config.ensemble.size = 5
    return config
