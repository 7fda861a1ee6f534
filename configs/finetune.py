"""Fine-tunes pretrained weights on a folder of images of any sizes.

Give the folder (`D/train/CLASS/*.jpg` and `D/test/CLASS/*.jpg`) and the weights: the workdir of a
run, a folder or file with weights, or a name of the Hub, such as `timm/resnet18.a1_in1k`::

    resflax train --config=configs/finetune.py --config.dataset=folder:D --config.pretrained=WHERE

Input size, normalization and evaluation are those of the pretrained model. Training images are
random Inception crops, mirrored at random. A weights file without a config.json needs its model:
`--config.model=resnet50`.

Measured on two cores of a shared machine (jax 0.10.2, oneDNN), seed 0: the published
`cifar_resnet20` of akamaster, trained on CIFAR-10, on the first 2,000 training images of
Fashion-MNIST and tested on the first 2,000 test images, PNG files of 28x28 pixels, for 3 epochs in
about 90 seconds. With the flags ::

    --config.dataset=folder:D --config.model=cifar_resnet20 --config.epochs=3
    --config.learning_rate=3e-3 --config.pretrained=resnet20-12fca82f.th --config.reset_head=True

the test accuracy is 0.8100; from scratch, with the last two replaced by ::

    --config.data.image_size=32 --config.data.crop_pct=1.0 --config.data.interpolation=bicubic

it is 0.5165.
"""

from ml_collections import ConfigDict

from resflax.train import default_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = default_config()
    config.model = ""  # that of the weights
    config.dataset = ""  # must be given
    config.epochs = 10
    config.batch_size = 32
    config.optimizer = "adamw"
    config.learning_rate = 3e-4
    config.head_learning_rate = 3e-3
    config.warmup_epochs = 1.0
    config.weight_decay = 0.05
    config.label_smoothing = 0.1
    config.data.image_size = -1  # the pretrained model's
    config.data.flip = True
    return config
