"""ResNet-50 on ImageNet with the recipe of torchvision's weights `IMAGENET1K_V2`.

Commands, the first one once (it needs TensorFlow)::

    resflax data prepare imagenet2012 --manual_dir=DIR
    python train.py --config=configs/imagenet_resnet50_torchvision_v2.py

As in "How to train state-of-the-art models using TorchVision's latest primitives" (Vryniotis 2021),
with references/classification/train.py of github.com/pytorch/vision: SGD with a batch of 1024 and a
learning rate of 0.5, linear warm-up over five epochs from a hundredth of it, cosine, 600 epochs,
weight decay 2e-5 but not on norms; label smoothing 0.1, mixup 0.2 or CutMix 1.0, TrivialAugment,
random erasing 0.1; training at 176x176, evaluation at 224x224 of images with a shorter side of 232;
weights averaged every 32 steps. `--model-ema-decay=0.99998` is a decay of 1 - 2e-5 * 1024 * 32 /
600 per average; until the warm-up is over it is a copy.

Repeated augmentation has four crops of an image in a batch. Different from there: the bias of the
head has no weight decay; erased boxes have noise instead of the mean color; batch norm is over all
examples of a batch; its statistics for the averaged weights are computed for them.

Measured: not run. torchvision reports a top-1 accuracy of 80.858 %.
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
    config.epochs = 600
    config.batch_size = 1024
    config.learning_rate = 0.5
    config.warmup_epochs = 5.0
    config.warmup_learning_rate = 0.005
    config.nesterov = False
    config.weight_decay = 2e-5
    config.label_smoothing = 0.1
    config.ema_decay = 1 - 2e-5 * 1024 * 32 / 600
    config.ema_every_steps = 32
    config.ema_start_step = 5 * 1281167 // 1024
    config.ema_warmup = "none"
    config.precise_bn_batches = 16
    config.data.image_size = 176
    config.data.eval_size = 224
    config.data.crop_pct = 224 / 232
    config.data.train_crop = "inception"
    config.data.auto_augment = "trivial"
    config.data.random_erasing = 0.1
    config.data.repeats = 4
    config.data.mixup_mode = "batch"
    config.data.mixup = 0.2
    config.data.cutmix = 1.0
    config.data.num_workers = 8
    config.data.flip = True
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.log_every_steps = 100
    return config
