"""Recipes of ImageNet and of the BiT-HyperRule have the numbers of their sources."""

import numpy as np
import pytest

from resflax import UserError
from resflax.cli.recipe import load_recipe
from resflax.train import check_config
from resflax.train.builders import build_schedule, total_steps
from resflax.train.image_sizes import build_phases

IMAGES = 1281167
# Epochs, batch size, largest and last learning rate, and sizes of training and evaluation.
PUBLISHED = {
    "imagenet_resnet50_rsb_a1.py": (600, 2048, 5e-3, 1e-6, 224, 224),
    "imagenet_resnet50_rsb_a2.py": (300, 2048, 5e-3, 1e-6, 224, 224),
    "imagenet_resnet50_rsb_a3.py": (100, 2048, 8e-3, 1e-6, 160, 224),
    "imagenet_resnet50_torchvision_v2.py": (600, 1024, 0.5, 0.0, 176, 224),
    "imagenet_resnet50_torchvision_v1.py": (90, 256, 0.1, 1e-3, 224, 224),
    "imagenet_resnet50_v1_paper.py": (120, 256, 0.1, 1e-4, 224, 224),
    "imagenet_resnet50_ffcv.py:88": (88, 4096, 1.7, 0.0, 160, 256),
    "imagenet_resnet50_distilled.py": (1200, 4096, 0.03, 0.0, 224, 224),
    "imagenet_resnetrs50.py": (350, 4096, 1.6, 0.0, 160, 160),
}


OTHER = "imagenet_resnet50_rsb_a2.py"  # a recipe without a teacher


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_has_the_published_schedule_and_sizes(name):
    epochs, batch_size, peak, last, train_size, eval_size = PUBLISHED[name]
    config = load_recipe(f"configs/{name}")
    check_config(config)
    assert (config.epochs, config.batch_size) == (epochs, batch_size)
    sizes = (config.data.image_size, config.data.eval_size or config.data.image_size)
    assert sizes == (train_size, eval_size)
    schedule, steps = build_schedule(config, IMAGES), total_steps(config, IMAGES)
    warmup = round(config.warmup_epochs * IMAGES / batch_size)
    np.testing.assert_allclose(schedule(warmup), peak, rtol=1e-5)
    np.testing.assert_allclose(schedule(steps), last, rtol=1e-2, atol=1e-8)


# Weight decay, label smoothing, stochastic depth, repeated augmentation, mixup and magnitude of
# RandAugment, by Wightman et al. 2021, table 2.
RSB = {
    "a1": (0.01, 0.1, 0.05, 3, 0.2, 7),
    "a2": (0.02, 0.0, 0.05, 3, 0.1, 7),
    "a3": (0.02, 0.0, None, 1, 0.1, 6),
}


@pytest.mark.parametrize("name", RSB)
def test_rsb_has_the_regularization_of_its_table(name):
    config = load_recipe(f"configs/imagenet_resnet50_rsb_{name}.py")
    decay, smoothing, drop_path, repeats, mixup, magnitude = RSB[name]
    assert (config.weight_decay, config.label_smoothing) == (decay, smoothing)
    assert (config.spec.drop_path, config.data.repeats) == (drop_path, repeats)
    assert (config.data.mixup, config.data.cutmix) == (mixup, 1.0)
    assert config.data.auto_augment == f"rand-m{magnitude}-mstd0.5-inc1"
    assert (config.optimizer, config.loss, config.warmup_epochs) == ("lamb", "bce", 5.0)


# What else the sources say, by recipe and key. The decay of torchvision's average is
# `1 - 2e-5 * 1024 images * 32 steps / 600 epochs`; the paper has no smoothing and no mixing.
SGD = {"optimizer": "sgd", "momentum": 0.9, "nesterov": False}
RSB_VALUES = {"data.crop_pct": 0.95, "data.mixup_mode": "batch", "grad_clip": 1.0}
OTHER_VALUES = {
    **{f"imagenet_resnet50_rsb_{name}.py": RSB_VALUES for name in RSB},
    "imagenet_resnet50_torchvision_v1.py": SGD
    | {"weight_decay": 1e-4, "label_smoothing": 0.0, "data.mixup": 0.0, "decay_rate": 0.1},
    "imagenet_resnet50_torchvision_v2.py": SGD
    | {"weight_decay": 2e-5, "label_smoothing": 0.1, "data.mixup": 0.2, "data.cutmix": 1.0}
    | {"data.auto_augment": "trivial", "data.random_erasing": 0.1, "data.repeats": 4}
    | {"ema_decay": 0.99890773, "ema_every_steps": 32, "data.crop_pct": 224 / 232},
    "imagenet_resnet50_v1_paper.py": SGD
    | {"weight_decay": 1e-4, "decay_rate": 0.1, "label_smoothing": 0.0, "data.mixup": 0.0},
    "imagenet_resnet50_ffcv.py:16": SGD
    | {"weight_decay": 1e-4, "label_smoothing": 0.1, "warmup_epochs": 2.0, "eval_tta": "flip"},
    "imagenet_resnet50_distilled.py": {"optimizer": "adamw", "weight_decay": 0.01}
    | {"grad_clip": 1.0, "distill.weight": 1.0, "distill.temperature": 1.0, "data.mixup": 1.0},
    "imagenet_resnetrs50.py": SGD
    | {"weight_decay": 4e-5, "label_smoothing": 0.1, "ema_decay": 0.9999, "spec.dropout": 0.25}
    | {"data.rand_augment": (2, 10), "warmup_epochs": 5.0},
    "bit_hyperrule.py": SGD | {"weight_decay": 0.0, "label_smoothing": 0.0},
}


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_recipe_has_the_other_values_of_its_source(name):
    config = load_recipe(f"configs/{name}")
    for key, value in OTHER_VALUES[name].items():
        *groups, last = key.split(".")
        found = getattr(config, *groups)[last] if groups else config[last]
        if isinstance(value, float):
            found, value = round(found, 8), round(value, 8)
        assert found == value, key


@pytest.mark.parametrize("name", RSB)
def test_rsb_binarizes_mixed_targets_at_a_fifth(name):
    """As timm's `--bce-target-thresh=0.2`, with which its authors trained."""
    assert load_recipe(f"configs/imagenet_resnet50_rsb_{name}.py").bce_target_threshold == 0.2


@pytest.mark.parametrize(
    ("examples", "warmup", "decays", "end", "mixup"),
    [
        (2040, 100, [200, 300, 400], 500, 0.0),
        (50000, 500, [3000, 6000, 9000], 10000, 0.1),
        (IMAGES, 500, [6000, 12000, 18000], 20000, 0.1),
    ],
)
def test_bit_hyperrule_has_the_steps_of_its_authors(examples, warmup, decays, end, mixup):
    config = load_recipe(f"configs/bit_hyperrule.py:{examples}")
    assert config.data.mixup == mixup
    config.dataset, config.pretrained = "folder:D", "weights.safetensors"
    check_config(config)
    assert 0 <= total_steps(config, examples) - end < examples / 512
    schedule = build_schedule(config, examples)
    for number, (first, last) in enumerate(zip([warmup, *decays], [*decays, end], strict=True)):
        rates = [float(schedule(step)) for step in (first, last - 1)]
        np.testing.assert_allclose(rates, 0.003 * 0.1**number, rtol=1e-5)


@pytest.mark.parametrize(
    ("epochs", "start_ramp", "end_ramp"),
    [(16, 11, 13), (24, 17, 20), (32, 23, 27), (40, 29, 34), (56, 41, 48), (88, 65, 76)],
)
def test_sizes_of_ffcv_are_those_of_its_ramp(epochs, start_ramp, end_ramp):
    """Interpolated and rounded to multiples of 32 as `get_resolution` of its train_imagenet.py."""
    config = load_recipe(f"configs/imagenet_resnet50_ffcv.py:{epochs}")
    phases = build_phases(config, IMAGES)
    for epoch in range(epochs):
        size = np.round(np.interp(epoch, [start_ramp, end_ramp], [160, 192]) / 32) * 32
        step = phases.steps_of_epochs(epoch, IMAGES)
        assert (phases.of_step(step).image_size or config.data.image_size) == size


def test_unknown_budget_of_ffcv_is_refused():
    with pytest.raises(UserError, match="'17': expected one of 16, 24, 32"):
        load_recipe("configs/imagenet_resnet50_ffcv.py:17")
