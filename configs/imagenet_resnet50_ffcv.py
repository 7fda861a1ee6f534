"""ResNet-50 on ImageNet with the budgets of FFCV (Leclerc et al. 2023), 16 to 88 epochs.

The argument after the colon is the number of epochs, one of `BUDGETS`. Commands, the first one
once (it needs TensorFlow)::

    resflax data prepare imagenet2012 --manual_dir=DIR
    python train.py --config=configs/imagenet_resnet50_ffcv.py:16

As `rn50_configs` and `train_imagenet.py` of github.com/libffcv/ffcv-imagenet: SGD with 512 images
on each of 8 GPUs, a learning rate of 1.7 that rises over two epochs from a ten-thousandth and falls
to zero, both linearly, momentum 0.9 without Nesterov, weight decay 1e-4 but not on norms, label
smoothing 0.1, blurred strides; Inception crops and flips; training at 160x160 and, from the epoch
in `BUDGETS` on, at 192x192, which are the sizes that its ramp between the two rounds to; evaluation
at 256x256, averaged over each image and its mirror image.

Different from there: the blur follows the strided convolutions, as in timm's resnetblur50, instead
of preceding all of 16 or more channels; the bias of the head has no weight decay, and the norms of
the projections have none; batch norm is over all examples of a batch.

Measured: not run. FFCV reports the top-1 accuracies in `BUDGETS`.
"""

from ml_collections import ConfigDict

from resflax.errors import unknown
from resflax.train import default_config

# By number of epochs: the first epoch of 192x192 pixels, and the top-1 accuracy that FFCV reports.
BUDGETS = {
    "16": (12, 0.738),
    "24": (19, 0.756),
    "32": (25, 0.766),
    "40": (32, 0.772),
    "56": (45, 0.780),
    "88": (71, 0.784),
}


def get_config(epochs: str = "16") -> ConfigDict:
    """Returns the recipe for a number of epochs."""
    if epochs not in BUDGETS:
        raise unknown("number of epochs of configs/imagenet_resnet50_ffcv.py", epochs, BUDGETS)
    config = default_config()
    config.model = "resnet50"
    config.spec.zero_init = False
    config.spec.antialias = "blur"
    config.dataset = "imagenet2012"
    config.dtype = "bfloat16"
    config.epochs = int(epochs)
    config.batch_size = 4096
    config.learning_rate = 1.7
    config.schedule = "polynomial"
    config.warmup_epochs = 2.0
    config.warmup_learning_rate = 1.7e-4
    config.nesterov = False
    config.weight_decay = 1e-4
    config.label_smoothing = 0.1
    config.data.image_size = 160
    config.data.size_schedule = ((BUDGETS[epochs][0], 192),)
    config.data.eval_size = 256
    config.data.train_crop = "inception"
    config.data.num_workers = 8
    config.data.flip = True
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.eval_tta = "flip"
    config.log_every_steps = 100
    return config
