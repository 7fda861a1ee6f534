"""A small residual network on CIFAR-10 in minutes on a laptop, in seconds on an accelerator.

After Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv:2404.00498), and Jordan
et al. 2024, Muon: a first convolution that whitens the images and is not trained, orthogonal steps
for the kernels of blocks, label smoothing of 0.2, crops of two pixels of padding, mirror images in
every other epoch, a learning rate that falls linearly, and an evaluation of six views of each test
image. The network is residual, with one basic block per stage, unlike that of the paper. Its stem
has stride 2. The run evaluates at its end only, and its steps are calls of the compiled step of
five seconds each. Averaged weights and a larger learning rate of the biases of norms, as in the
paper, did not help here: 0.8433 after eight epochs on CIFAR-10 as JPEG, one seed, and 0.8532
without.

Commands, the first one once (it needs TensorFlow)::

    resflax data prepare cifar10
    python train.py --config=configs/cifar10_fast.py
    python train.py --config=configs/cifar10_fast.py --config.ensemble.size=5
    python train.py --config=configs/cifar10_fast.py:wide

The argument `wide` is for accelerators: a stem without stride, and widths of 64, 256 and 256.

Measured on CIFAR-10 as JPEG, which loses much of the images, on two cores of an AMD EPYC with
other jobs: test accuracy 0.8532, three seeds, 6 minutes each (docs/results.md). Not run: `wide`,
and on an accelerator.
"""

from ml_collections import ConfigDict

from resflax.errors import unknown
from resflax.train import default_config

# Stem, and widths of the stages.
NETWORKS = {
    "narrow": ("cifar_stride2", (32, 64, 128)),
    "wide": ("cifar", (64, 256, 256)),
}


def get_config(network: str = "narrow") -> ConfigDict:
    """Returns the recipe for a network in `NETWORKS`."""
    if network not in NETWORKS:
        raise unknown("network", network, NETWORKS)
    config = default_config()
    config.dataset = "cifar10"
    config.model = "cifar_resnet8"
    config.spec.stem, config.spec.widths = NETWORKS[network]
    config.spec.stem_width = 54  # the 27 directions of 3x3 patches of RGB, and their negatives
    config.spec.shortcut = "B"
    config.spec.activation = "silu"
    config.spec.pooling = "max"
    config.whiten_stem = True
    config.epochs = 8
    config.batch_size = 256
    config.optimizer = "muon"
    config.learning_rate = 0.04
    config.schedule = "polynomial"  # linear
    config.warmup_epochs = 1.0
    config.weight_decay = 0.01
    config.label_smoothing = 0.2
    config.data.pad_crop = 2
    config.data.alternating_flip = True
    config.eval_tta = "flip_shift"
    # No checkpoint and no evaluation before the end.
    config.steps_per_call = 1_000_000
    config.eval_every_epochs = 1000
    config.checkpoint_every_minutes = 0.0
    config.log_every_steps = 50
    return config
