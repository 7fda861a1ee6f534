"""ResNet-20 on Fashion-MNIST (Xiao et al. 2017), 28x28 gray images of ten kinds of clothes.

Commands, the first one once (it needs TensorFlow)::

    resflax data prepare fashion_mnist
    python train.py --config=configs/fashion_mnist_resnet20.py

Measured on two cores of an AMD EPYC (jax 0.10.2, oneDNN), with other jobs on the machine: test
accuracy 0.9407 of 10,000 images, seed 0, in 46 minutes (docs/results.md).
"""

from ml_collections import ConfigDict

from resflax.train import default_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = default_config()
    config.model = "cifar_resnet20"
    config.dataset = "fashion_mnist"
    config.epochs = 30
    config.batch_size = 128
    config.learning_rate = 0.1
    config.warmup_epochs = 1.0
    config.weight_decay = 5e-4
    config.data.pad_crop = 2
    config.data.flip = True
    config.log_every_steps = 100
    return config
