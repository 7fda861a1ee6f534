"""ResNet-50 on ImageNet, 90 epochs (Goyal et al. 2017, arXiv:1706.02677).

Commands, the first one once (it needs TensorFlow)::

    resflax data prepare imagenet2012 --manual_dir=DIR
    python train.py --config=configs/imagenet_resnet50.py

Batch 256, learning rate 0.1 after five epochs of warm-up, divided by ten at epochs 30, 60 and 80,
weight decay 1e-4 on kernels, Nesterov momentum 0.9, branches initialized to zero; Inception crops
and flips; bfloat16. For a batch of k times 256 use a learning rate of k times 0.1; the warm-up is
for this, and Goyal et al. do not use it at 256. Their batch norm is over 32 images each.

Measured: not run. Goyal et al. report a top-1 error of 23.60 +- 0.12 % at batch 256 (table 1).
"""

from ml_collections import ConfigDict

from resflax.train import default_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = default_config()
    config.model = "resnet50"
    config.dataset = "imagenet2012"
    config.dtype = "bfloat16"
    config.batch_size = 256
    config.epochs = 90
    config.learning_rate = 0.1
    config.warmup_epochs = 5.0
    config.schedule = "step"
    config.decay_epochs = (30, 60, 80)
    config.weight_decay = 1e-4
    config.data.image_size = 224
    config.data.train_crop = "inception"
    config.data.num_workers = 8
    config.data.flip = True
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.log_every_steps = 100
    return config
