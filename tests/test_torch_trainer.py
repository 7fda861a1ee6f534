"""The PyTorch trainer that the recipes are held against: its own parts, beside plain NumPy."""

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
from benchmarks.torch_trainer import augment, batches, check_heeded  # noqa: E402
from resflax.errors import UserError  # noqa: E402
from resflax.train import default_config  # noqa: E402


def test_each_image_is_a_window_of_itself_padded_and_mirrored_or_not():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (64, 3, 6, 5), np.uint8)
    cut = augment(torch.from_numpy(images), 2, True, torch.Generator().manual_seed(0)).numpy()
    seen = set()
    for image, found in zip(images, cut, strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        windows = {
            (top, left, turn): padded[:, top : top + 6, left : left + 5][:, :, ::turn]
            for top in range(5)
            for left in range(5)
            for turn in (1, -1)
        }
        where = [key for key, window in windows.items() if np.array_equal(window, found)]
        assert len(where) == 1
        seen.add(where[0])
    assert {turn for _, _, turn in seen} == {1, -1}
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))


def test_without_padding_and_flips_images_stay():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    assert torch.equal(augment(images, 0, False, torch.Generator().manual_seed(0)), images)


def test_every_example_once_an_epoch_across_batches():
    row = torch.cat(list(batches(10, 4, 5, torch.Generator().manual_seed(0))))
    assert sorted(row[:10].tolist()) == sorted(row[10:].tolist()) == list(range(10))
    assert row[:10].tolist() != row[10:].tolist()


def test_a_key_that_it_would_ignore_is_refused():
    config = default_config()
    config.data.mixup = 0.2
    with pytest.raises(UserError, match=r"config.data.mixup is 0.2: the PyTorch trainer has only"):
        check_heeded(config)


def test_an_epoch_of_the_digits_from_the_weights_that_the_trainer_begins_with(tmp_path):
    def first_loss(command: list[str], name: str) -> float:
        keys = ["--config.epochs=1", "--config.model=cifar_resnet8", "--config.log_every_steps=1"]
        keys += ["--config.data.pad_crop=0", "--config.warmup_epochs=0.0"]
        keys += ["--config.batch_size=1437"]  # the whole split as one batch: its order is no matter
        one_device = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        recipe = f"--config={ROOT / 'configs' / 'digits.py'}"
        command = [sys.executable, *command, recipe, *keys, f"--workdir={tmp_path / name}"]
        subprocess.run(command, cwd=ROOT, env=one_device, check=True, timeout=300)
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert (results["test_examples"], results["steps"]) == (360, 1)
        return json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["loss"]

    ours = first_loss([str(ROOT / "train.py")], "ours")
    theirs = first_loss(["-m", "benchmarks.torch_trainer"], "theirs")
    assert theirs == pytest.approx(ours, rel=1e-5)
