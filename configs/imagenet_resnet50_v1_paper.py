"""ResNet-50 on ImageNet as in the paper (He et al. 2015, arXiv:1512.03385, section 3.4).

Commands, the first one once (it needs TensorFlow)::

    resflax data prepare imagenet2012 --manual_dir=DIR
    python train.py --config=configs/imagenet_resnet50_v1_paper.py --workdir=runs/v1
    resflax evaluate runs/v1 --crops=10

As in the paper: bottlenecks with the stride on the first 1x1 convolution, projections where shapes
differ (option B), no branch initialized to zero, no warm-up; batch 256, weight decay 1e-4, momentum
0.9 without Nesterov, 120 epochs, which are the paper's 60e4 steps and 548 more; flips; evaluation
on the center 224x224 of images with a shorter side of 256; batch statistics computed on the
training set for the final weights, not running averages (README of the authors' models).

Different from the paper:

- The learning rate, 0.1, is divided by ten at epochs 30, 60 and 90; the paper does so when the
  error plateaus.
- Inception crops instead of a shorter side of 256 to 480 and a crop of 224x224, and color jitter
  instead of AlexNet's shifts along the principal colors. Both are as in fb.resnet.torch, which
  reports a top-1 error of 24.01 % (one crop) with them and with the stride on the 3x3.
- The mean of each channel is subtracted, not of each pixel, and each channel is divided by its
  standard deviation.
- Batch norm is over the 256 images of all devices; the paper's is over 32 on each of 8 GPUs.
- Weight decay is on all parameters. The paper does not say; according to fb.resnet.torch's
  README the paper's is on the kernels of convolutions only: `--config.decay_mask=kernels`.

Measured: not run. The paper reports a top-1 error of 22.85 % on the validation set with ten crops
(table 3), and the README of its models 24.7 % with the center crop, which `train.py` measures.
"""

from ml_collections import ConfigDict

from resflax.train import default_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = default_config()
    config.model = "resnet50_v1"
    config.spec.zero_init = False
    config.dataset = "imagenet2012"
    config.batch_size = 256
    config.epochs = 120
    config.learning_rate = 0.1
    config.schedule = "step"
    config.decay_epochs = (30, 60, 90)
    config.weight_decay = 1e-4
    config.decay_mask = "all"
    config.nesterov = False
    config.precise_bn_batches = 40  # 10,240 images
    config.data.image_size = 224
    config.data.train_crop = "inception"
    config.data.num_workers = 8
    config.data.flip = True
    config.data.color_jitter = (0.4, 0.4, 0.4, 0.0)
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.log_every_steps = 100
    return config
