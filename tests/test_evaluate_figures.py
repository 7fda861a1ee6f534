"""Figures of an evaluation, for few and for many classes."""

import numpy as np
import pytest
from PIL import Image

from resflax.evaluate.figures import _sum_blocks, draw_confusion, draw_reliability
from resflax.metrics import score_examples


def test_blocks_of_classes_keep_the_number_of_examples():
    confusion = np.random.default_rng(0).integers(0, 9, (7, 7))
    blocks = _sum_blocks(confusion, 3)
    assert blocks.shape == (3, 3)
    assert blocks[1, 0] == confusion[3:6, :3].sum()
    assert blocks[2, 2] == confusion[6, 6]
    np.testing.assert_array_equal(_sum_blocks(confusion, 1), confusion)


@pytest.mark.parametrize("classes", [2, 10, 40, 1000])
def test_confusion_matrix_is_drawn_for_any_number_of_classes(classes, tmp_path):
    confusion = np.random.default_rng(0).integers(0, 3, (classes, classes))
    names = [f"class {i}" for i in range(classes)]
    draw_confusion(confusion, names, tmp_path / "confusion.png", "a title")
    with Image.open(tmp_path / "confusion.png") as image:
        assert min(image.size) > 400
        assert np.ptp(np.asarray(image)) > 200


def test_reliability_diagram_is_drawn_for_one_bin(tmp_path):
    draw_reliability(
        score_examples(np.zeros((3, 4)), np.arange(3)), tmp_path / "reliability.png", "a title"
    )
    with Image.open(tmp_path / "reliability.png") as image:
        assert image.format == "PNG"


def test_names_with_dollar_signs_and_rare_characters_are_drawn(tmp_path):
    names = ["$a_{$", "costs $5", "\u4e2d"]
    draw_confusion(np.eye(3, dtype=int), names, tmp_path / "confusion.png", "$x_{$")
    assert (tmp_path / "confusion.png").exists()
