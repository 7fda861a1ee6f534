"""Tests of the PyTorch trainer that recipes are compared with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.peers.torch_data import augment, batches  # noqa: E402
from benchmarks.torch_trainer import check_supported  # noqa: E402
from resflax.errors import UserError  # noqa: E402
from resflax.train import default_config  # noqa: E402


def test_augment_returns_crops_of_padded_and_flipped_images():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (64, 3, 6, 5), np.uint8)
    generator = torch.Generator().manual_seed(0)
    flipped = torch.arange(64) % 2 == 0
    crops = augment(torch.from_numpy(images), 2, flipped, generator).numpy()
    seen = set()
    for i, (image, crop) in enumerate(zip(images, crops, strict=True)):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        windows = {
            (top, left, step): padded[:, top : top + 6, left : left + 5][:, :, ::step]
            for top in range(5)
            for left in range(5)
            for step in (1, -1)
        }
        matches = [key for key, window in windows.items() if np.array_equal(window, crop)]
        assert len(matches) == 1
        assert matches[0][2] == (-1 if i % 2 == 0 else 1)
        seen.add(matches[0])
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))


def test_augment_without_padding_and_flip_is_the_identity():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(augment(images, 0, torch.zeros(2, dtype=torch.bool), generator), images)


def test_batches_contain_every_example_once_per_epoch():
    order = torch.cat(list(batches(10, 4, 5, torch.Generator().manual_seed(0))))
    assert sorted(order[:10].tolist()) == sorted(order[10:].tolist()) == list(range(10))
    assert order[:10].tolist() != order[10:].tolist()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data.mixup": 0.2}, "config.data.mixup is 0.2: the PyTorch trainer supports only 0.0"),
        ({"optimizer": "adamw"}, "config.optimizer is 'adamw': .* supports only 'sgd' or 'muon'"),
        ({"schedule": "plateau"}, "config.schedule is 'plateau': .* supports only 'constant' or"),
        ({"spec.activation": "gelu"}, "config.spec.activation is 'gelu': .* only None or 'relu'"),
        ({"optimizer": "muon", "nesterov": False}, "config.nesterov is False: .* only True"),
    ],
)
def test_unsupported_config_is_an_error(keys, message):
    config = default_config()
    config.update_from_flattened_dict(keys)
    with pytest.raises(UserError, match=message):
        check_supported(config)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "recipe",
    [
        ["digits.py", "--config.model=cifar_resnet8"],
        ["cifar10_fast.py", "--config.dataset=digits", "--config.data.alternating_flip=False"],
    ],
)
def test_first_loss_equals_that_of_train_py(recipe, tmp_path):
    def first_loss(command: list[str], name: str) -> float:
        # With the entire split as one batch, the order of the examples does not matter.
        keys = ["--config.epochs=1", "--config.log_every_steps=1", *recipe[1:]]
        keys += ["--config.data.pad_crop=0", "--config.warmup_epochs=0.0"]
        keys += ["--config.batch_size=1437"]
        one_device = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        path = f"--config={ROOT / 'configs' / recipe[0]}"
        command = [sys.executable, *command, path, *keys, f"--workdir={tmp_path / name}"]
        subprocess.run(command, cwd=ROOT, env=one_device, check=True, timeout=300)
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert (results["test_examples"], results["steps"]) == (360, 1)
        return json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["loss"]

    resflax_loss = first_loss([str(ROOT / "train.py")], "resflax")
    torch_loss = first_loss(["-m", "benchmarks.torch_trainer"], "torch")
    assert torch_loss == pytest.approx(resflax_loss, rel=1e-5)
