"""Views of images at test time against torchvision and closed forms."""

import numpy as np
import pytest
from PIL import Image

from resflax import UserError
from resflax.data import EvalTransform
from resflax.evaluate.views import Views, resize_shorter_side

CENTER = EvalTransform(size=(16, 16), crop_pct=0.8, interpolation="bicubic")


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def ten_views(pixels, center=CENTER):
    """Returns the ten crops, in the order of the views."""
    views = Views(crops=10)
    batch = views.transform(center).apply(pixels)[None]
    return [view[0] for view in views.of_batch(batch)]


@pytest.mark.parametrize(("height", "width"), [(23, 31), (40, 25), (20, 20)])
def test_ten_crops_are_those_of_torchvision(height, width):
    transforms = pytest.importorskip("torchvision.transforms")
    pixels = noise(height, width)
    resize = transforms.Resize(20, transforms.InterpolationMode.BICUBIC)
    expected = transforms.TenCrop(16)(resize(Image.fromarray(pixels)))
    ours = ten_views(pixels)
    assert len(ours) == len(expected) == 10
    # torchvision: five crops, then those of the mirror image, whose left crops are our right ones.
    order = [0, 6, 1, 5, 2, 8, 3, 7, 4, 9]
    for view, index in zip(ours, order, strict=True):
        np.testing.assert_array_equal(view, np.asarray(expected[index]))


def test_ten_crops_of_a_gray_image_have_one_channel():
    assert {view.shape for view in ten_views(noise(20, 24, 1))} == {(16, 16, 1)}


def test_last_pair_of_ten_crops_is_the_center_crop():
    pixels = noise(21, 30)
    center, mirrored = ten_views(pixels)[-2:]
    np.testing.assert_array_equal(center, CENTER.apply(pixels))
    np.testing.assert_array_equal(mirrored, center[:, ::-1])


@pytest.mark.parametrize(("height", "width", "side"), [(23, 31, 17), (31, 23, 40), (375, 500, 224)])
def test_scales_resize_the_shorter_side_like_torchvision(height, width, side):
    transforms = pytest.importorskip("torchvision.transforms")
    pixels = noise(height, width)
    resize = transforms.Resize(side, transforms.InterpolationMode.BILINEAR)
    expected = np.asarray(resize(Image.fromarray(pixels)))
    np.testing.assert_array_equal(resize_shorter_side(pixels, side, "bilinear"), expected)


def test_scales_yield_the_whole_image_and_mirrors():
    pixels = noise(12, 18)
    views = Views(tta="flip", scales=(12, 24))
    np.testing.assert_array_equal(views.transform(CENTER).apply(pixels), pixels)
    images = list(views.of_image(pixels, "bicubic"))
    assert [image.shape for image in images] == [(1, 12, 18, 3)] * 2 + [(1, 24, 36, 3)] * 2
    np.testing.assert_array_equal(images[0][0], pixels)
    np.testing.assert_array_equal(images[1][0], pixels[:, ::-1])
    assert views.count == len(images)


def test_flip_yields_the_batch_and_its_mirror():
    batch = noise(2, 8, 8)[None].reshape(1, 2, 8, 8)[..., :3]
    first, second = Views(tta="flip").of_batch(batch)
    np.testing.assert_array_equal(first, batch)
    np.testing.assert_array_equal(second, batch[:, :, ::-1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tta": "flips"}, "unknown tta 'flips'"),
        ({"crops": 5}, "crops is 5: expected 1 or 10"),
        ({"crops": 10, "tta": "flip"}, "expected no tta='flip'"),
        ({"crops": 10, "scales": (224,)}, "expected one of them"),
        ({"scales": (0,)}, "expected integers from 1"),
        ({"scales": (8, 8)}, "expected different integers"),
    ],
)
def test_invalid_views_are_errors(values, message):
    with pytest.raises(UserError, match=message):
        Views(**values)
