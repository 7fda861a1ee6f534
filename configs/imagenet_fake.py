"""ResNet-50 on noise of ImageNet's shape, to measure the speed of training without any files.

Command::

    python train.py --config=configs/imagenet_fake.py

`examples_per_second` in `results.json` is the speed of the training step: compilation and
evaluation are excluded, and nothing is read from files. The defaults, 8 steps of 32, are for a
laptop's CPU. On an accelerator use more examples, larger batches, bfloat16, and enough epochs for a
hundred steps or more, evaluated once, in one line::

    python train.py --config=configs/imagenet_fake.py --config.dtype=bfloat16
      --config.dataset=fake:224x224x3:1000:2048 --config.batch_size=256
      --config.epochs=20 --config.eval_every_epochs=20

Measured with the defaults: two and a half minutes on two cores of an AMD EPYC (jax 0.10.2, oneDNN),
with other jobs on the machine.

Up to 512 MiB (3,566 images) are kept on the devices; with larger sets, or with
`--config.data.placement=host`, each batch is transferred. Nothing can be learned: labels are noise
too.
"""

from ml_collections import ConfigDict

from resflax.train import default_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = default_config()
    config.model = "resnet50"
    config.dataset = "fake:224x224x3:1000:256"
    config.batch_size = 32
    config.epochs = 1
    # Low, so that the loss stays finite on noise.
    config.learning_rate = 0.01
    config.schedule = "constant"
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    return config
