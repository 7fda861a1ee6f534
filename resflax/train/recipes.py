"""What several recipes share."""

from ml_collections import ConfigDict

from resflax.train.config import default_config


def paper_cifar10(model: str) -> ConfigDict:
    """A net of He et al. 2015 on CIFAR-10 as in the paper (section 4.2)."""
    config = default_config()
    config.model = model
    config.dataset = "cifar10"
    config.batch_size = 128
    config.epochs = 164  # 64k steps, and 62 more
    config.learning_rate = 0.1
    config.schedule = "step"
    config.decay_epochs = (32_000 * 128 / 50_000, 48_000 * 128 / 50_000)
    config.weight_decay = 1e-4
    config.decay_mask = "all"
    config.nesterov = False
    config.data.pad_crop = 4
    config.data.flip = True
    config.log_every_steps = 100
    return config
