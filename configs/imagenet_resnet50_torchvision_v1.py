"""ResNet-50 on ImageNet with the recipe of torchvision's weights `IMAGENET1K_V1`.

Commands, the first one once (it needs TensorFlow)::

    resflax data prepare imagenet2012 --manual_dir=DIR
    python train.py --config=configs/imagenet_resnet50_torchvision_v1.py

The defaults of references/classification/train.py of github.com/pytorch/vision on 8 GPUs: batch
256, 90 epochs, learning rate 0.1, divided by ten at epochs 30 and 60, momentum 0.9 without
Nesterov, weight decay 1e-4 on all parameters; Inception crops and flips; no branch initialized to
zero.

Different from there: batch norm is over all examples of a batch, not over the 32 of each GPU.

Measured: not run. torchvision reports a top-1 accuracy of 76.130 %.
"""

from ml_collections import ConfigDict

from resflax.train import default_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = default_config()
    config.model = "resnet50"
    config.spec.zero_init = False
    config.dataset = "imagenet2012"
    config.dtype = "bfloat16"
    config.epochs = 90
    config.batch_size = 256
    config.learning_rate = 0.1
    config.schedule = "step"
    config.decay_epochs = (30, 60)
    config.nesterov = False
    config.weight_decay = 1e-4
    config.decay_mask = "all"
    config.data.image_size = 224
    config.data.train_crop = "inception"
    config.data.num_workers = 8
    config.data.flip = True
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.log_every_steps = 100
    return config
