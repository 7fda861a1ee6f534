"""ResNet-50 (BiT) on ImageNet, distilled as in Beyer et al. 2021 (arXiv:2106.05237).

Commands, the first one once (it needs TensorFlow)::

    resflax data prepare imagenet2012 --manual_dir=DIR
    python train.py --config=configs/imagenet_resnet50_distilled.py

"A good teacher is patient and consistent": the teacher, a BiT ResNet-152x2 with a top-1 accuracy of
83.0 % at 224x224, sees the same mixed crops as the network that learns, for many epochs, and no
label is used. 1200 epochs with a batch of 4096; Adam with a learning rate of 0.03 after 5000 steps
of warm-up, cosine, the gradient's norm clipped at 1; Inception crops of 224x224 and mirror images;
mixup with a weight from 0 to 1, one per batch; temperature 1; pixels from -1 to 1; evaluation on
the center 224x224 of images with a shorter side of 256. The values are those of
`big_vision/configs/proj/distill/bit_i1k.py` of github.com/google-research/big_vision.

The weight decay there, 3e-4, is not multiplied by the learning rate; divided by it, it is 0.01
here, on the kernels only. Different from there: training uses the whole training split, not 98 % of
it; the first moment of Adam is float32, not bfloat16.

Measured: not run. The paper's best ResNet-50 has a top-1 accuracy of 82.8 % at 224x224 (abstract);
it learned from teachers at more than one resolution. Figure 5 (left) has the accuracy by epochs
with this teacher.
"""

from ml_collections import ConfigDict

from resflax.train import default_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = default_config()
    config.model = "resnetv2_50x1_bit"
    config.distill.teacher = "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k"
    config.distill.weight = 1.0
    config.distill.temperature = 1.0
    config.dataset = "imagenet2012"
    config.dtype = "bfloat16"
    config.epochs = 1200
    config.batch_size = 4096
    config.optimizer = "adamw"
    config.learning_rate = 0.03
    config.warmup_epochs = 5000 * 4096 / 1_281_167
    config.weight_decay = 0.01
    config.decay_mask = "kernels"
    config.grad_clip = 1.0
    config.data.image_size = 224
    config.data.train_crop = "inception"
    config.data.mixup = 1.0
    config.data.mixup_mode = "batch"
    config.data.num_workers = 8
    config.data.flip = True
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.5, 0.5, 0.5)
    config.log_every_steps = 50
    return config
