"""ResNet-RS-50 on ImageNet at 160x160 (Bello et al. 2021, arXiv:2103.07579).

Commands, the first one once (it needs TensorFlow)::

    resflax data prepare imagenet2012 --manual_dir=DIR
    python train.py --config=configs/imagenet_resnetrs50.py

As models/official/resnet/resnet_rs/configs/resnetrs50_i160.yaml of github.com/tensorflow/tpu: SGD
with a batch of 4096, a learning rate of 0.1 for 256 examples, five epochs of warm-up, cosine, 350
epochs, weight decay 4e-5, label smoothing 0.1, dropout 0.25, RandAugment with 2 operations of
magnitude 10, averaged weights with a decay of 0.9999; training and evaluation at 160x160.

Different from there: batch norm's statistics for the averaged weights are computed for them, where
the paper averages those of single batches.

Measured: not run. The paper reports a top-1 accuracy of 78.8 %.
"""

from ml_collections import ConfigDict

from resflax.train import default_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = default_config()
    config.model = "resnetrs50"
    config.spec.dropout = 0.25
    config.dataset = "imagenet2012"
    config.dtype = "bfloat16"
    config.epochs = 350
    config.batch_size = 4096
    config.learning_rate = 0.1
    config.learning_rate_scaling = "linear"
    config.warmup_epochs = 5.0
    config.nesterov = False
    config.weight_decay = 4e-5
    config.label_smoothing = 0.1
    config.ema_decay = 0.9999
    config.precise_bn_batches = 16
    config.data.image_size = 160
    config.data.eval_size = 160
    config.data.interpolation = "bicubic"
    config.data.train_crop = "inception"
    config.data.rand_augment = (2, 10)
    config.data.num_workers = 8
    config.data.flip = True
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.log_every_steps = 100
    return config
