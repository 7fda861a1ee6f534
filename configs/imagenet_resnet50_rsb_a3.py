"""ResNet-50 on ImageNet, recipe A3 of Wightman et al. 2021 (arXiv:2110.00476).

Commands, the first one once (it needs TensorFlow)::

    resflax data prepare imagenet2012 --manual_dir=DIR
    python train.py --config=configs/imagenet_resnet50_rsb_a3.py

LAMB with a batch of 2048, learning rate 8e-3 after five epochs of warm-up, cosine, weight decay
0.02; binary cross-entropy, for which every class of a mixed image is a target; RandAugment
`rand-m6-mstd0.5-inc1`, mixup 0.1 or CutMix 1.0; training at 160x160, evaluation at 224x224 of
images with a shorter side of 236, bicubic.

The numbers are those of table 2. The paper does not give the learning rates at both ends of the
schedule and the threshold of targets; they are those of public argument files for timm, the last
rate also that of configs/_base_/schedules/imagenet_bs2048_rsb.py of open-mmlab/mmpretrain. The
limit of the gradient's norm is that of timm's LAMB, and the random interpolation of training crops
the default of timm's train.py.

Measured: not run. The paper reports a top-1 accuracy of 78.1 % (table 1).
"""

from ml_collections import ConfigDict

from resflax.train import default_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = default_config()
    config.model = "resnet50"
    config.dataset = "imagenet2012"
    config.dtype = "bfloat16"
    config.epochs = 100
    config.batch_size = 2048
    config.optimizer = "lamb"
    config.learning_rate = 8e-3
    config.warmup_epochs = 5.0
    config.warmup_learning_rate = 1e-4
    config.min_learning_rate = 1e-6
    config.weight_decay = 0.02
    config.grad_clip = 1.0
    config.loss = "bce"
    config.bce_target_threshold = 0.2
    config.data.image_size = 160
    config.data.eval_size = 224
    config.data.crop_pct = 0.95
    config.data.interpolation = "bicubic"
    config.data.train_crop = "inception"
    config.data.train_interpolation = "random"
    config.data.auto_augment = "rand-m6-mstd0.5-inc1"
    config.data.mixup_mode = "batch"
    config.data.mixup = 0.1
    config.data.cutmix = 1.0
    config.data.num_workers = 8
    config.data.flip = True
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.log_every_steps = 100
    return config
