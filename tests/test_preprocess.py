"""From an image to a network's input, against the same said directly in PIL and NumPy."""

import io

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from resflax import UserError, create_model
from resflax.weights import Preprocess
from resflax.weights.preprocess import default_preprocess

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
BICUBIC = Image.Resampling.BICUBIC


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def normalised(pixels):
    return (np.asarray(pixels, np.float64) / 255 - MEAN) / STD


def resized(image, height, width, how=BICUBIC):
    return np.asarray(Image.fromarray(image).resize((width, height), how))


@pytest.mark.parametrize(
    ("size", "fields", "expected"),
    [
        # 224 / 0.875 = 256 on the shorter side, 256 * 300 / 200 = 384 on the longer.
        ((200, 300), {}, lambda x: resized(x, 256, 384)[16:240, 80:304]),
        ((300, 200), {}, lambda x: resized(x, 384, 256)[80:304, 16:240]),
        # floor(224 / 0.95) = 235; floor(235 * 333 / 500) is the longer side's share.
        ((333, 500), {"crop_pct": 0.95}, lambda x: resized(x, 235, 352)[6:230, 64:288]),
        ((224, 224), {"crop_pct": 1.0}, lambda x: x),
        # Half pixels of a crop go to the even side: 55 -> 10 at 22, 65 -> 10 at 28.
        ((55, 65), {"size": (10, 10), "crop_pct": 10 / 55}, lambda x: x[22:32, 28:38]),
        ((30, 30), {"size": (20, 20), "crop_pct": 20 / 30}, lambda x: x[5:25, 5:25]),
        # "squash" keeps no ratio.
        (
            (50, 90),
            {"size": (32, 40), "crop_pct": 0.8, "crop_mode": "squash"},
            lambda x: resized(x, 40, 50)[4:36, 5:45],
        ),
        # Oblong: 64 / 0.9 = 71 and 96 / 0.9 = 106 are covered by 71 x 107.9, to the nearest.
        (
            (200, 304),
            {"size": (64, 96), "crop_pct": 0.9},
            lambda x: resized(x, 71, 108)[4:68, 6:102],
        ),
        ((200, 300), {"size": (96, 64), "crop_pct": 1.0}, lambda x: resized(x, 96, 144)[:, 40:104]),
    ],
)
def test_resize_crop_and_normalise(size, fields, expected):
    image = noise(*size)
    found = Preprocess(**fields)(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, normalised(expected(image)), atol=2e-6)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("nearest", Image.Resampling.NEAREST),
        ("bilinear", Image.Resampling.BILINEAR),
        ("bicubic", Image.Resampling.BICUBIC),
        ("lanczos", Image.Resampling.LANCZOS),
    ],
)
def test_interpolation_is_pils_of_that_name(name, how):
    image = noise(40, 40)
    found = Preprocess(size=(24, 24), crop_pct=1.0, interpolation=name)(image)
    np.testing.assert_allclose(found, normalised(resized(image, 24, 24, how)), atol=2e-6)


@settings(deadline=None, max_examples=60)
@given(
    image=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop_pct=st.floats(0.3, 1),
    mode=st.sampled_from(["center", "squash"]),
)
def test_every_image_becomes_the_size_asked_for_without_a_border(image, size, crop_pct, mode):
    """A white image stays white: a crop beyond the edge would bring black in."""
    white = np.full((*image, 3), 255, np.uint8)
    how = Preprocess(size, crop_pct, "bilinear", (0.0,) * 3, (1.0,) * 3, mode)
    np.testing.assert_array_equal(how(white), np.ones((*size, 3), np.float32))


def test_a_path_an_image_and_an_array_are_the_same(tmp_path):
    pixels, how = noise(30, 50), Preprocess(size=(16, 16))
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    for given_ in (tmp_path / "a.png", str(tmp_path / "a.png"), image):
        np.testing.assert_array_equal(how(given_), how(pixels))
    # Transparency is dropped, a palette and grey are spread over three channels.
    np.testing.assert_array_equal(how(image.convert("RGBA")), how(pixels))
    grey = image.convert("L")
    np.testing.assert_array_equal(how(grey), how(np.stack([np.asarray(grey)] * 3, -1)))
    assert how(image.convert("P")).shape == (16, 16, 3)


def test_one_mean_means_one_channel():
    image = noise(8, 8)
    found = Preprocess((8, 8), 1.0, mean=(0.5,), std=(0.25,))(image)
    grey = image @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert found.shape == (8, 8, 1)
    np.testing.assert_allclose(found[..., 0], (grey / 255 - 0.5) / 0.25, atol=4 / 255)


def test_what_is_usual_for_a_network():
    half = (0.5, 0.5, 0.5)
    assert default_preprocess(create_model("resnet50").spec) == Preprocess()
    assert default_preprocess(create_model("resnetv2_50x1_bit").spec) == Preprocess(
        mean=half, std=half
    )
    cifar = default_preprocess(create_model("cifar_resnet20").spec)
    assert (cifar.size, cifar.crop_pct) == ((32, 32), 1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic': expected one of nearest"),
        ({"crop_mode": "border"}, "unknown crop_mode 'border': expected one of center, squash"),
        ({"size": (0, 8)}, "are no part of an image"),
        ({"crop_pct": 0.0}, "are no part of an image"),
        ({"crop_pct": 1.5}, "are no part of an image"),
        ({"crop_pct": float("nan")}, "are no part of an image"),
        ({"std": (0.1, 0.0, 0.1)}, "std positive"),
        ({"mean": (0.1,)}, "must be as many"),
    ],
)
def test_a_preprocessing_that_cannot_be_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Preprocess(**fields)


@pytest.mark.parametrize("array", [np.zeros((8, 8, 3)), noise(8, 8)[..., 0], noise(8, 8)[..., :2]])
def test_an_array_of_another_kind_is_refused(array):
    with pytest.raises(UserError, match=r"expected a uint8 image \(h, w, 3\): got "):
        Preprocess()(array)


def test_what_is_no_image_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="there is no image .*no.png"):
        Preprocess()(tmp_path / "no.png")
    (tmp_path / "a.png").write_bytes(b"text")
    for path in (tmp_path / "a.png", tmp_path):
        with pytest.raises(UserError, match="is no image that can be read: ") as e:
            Preprocess()(path)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp"])
def test_an_image_cut_short_anywhere_is_refused_or_read_but_never_another_error(tmp_path, kind):
    whole = io.BytesIO()
    Image.fromarray(noise(20, 20)).save(whole, kind)
    data, part = whole.getvalue(), tmp_path / f"part.{kind}"
    refused = 0
    for length in range(0, len(data), max(1, len(data) // 150)):
        part.write_bytes(data[:length])
        try:
            Preprocess(size=(8, 8))(part)
        except UserError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("kind", ["png", "ppm"])
def test_an_image_with_one_bad_byte_is_refused_or_read_but_never_another_error(tmp_path, kind):
    whole, path = io.BytesIO(), tmp_path / f"bad.{kind}"
    Image.fromarray(noise(8, 8)).save(whole, kind)
    refused = 0
    for i, _ in enumerate(whole.getvalue()):
        data = bytearray(whole.getvalue())
        data[i] ^= 0x40
        path.write_bytes(data)
        try:
            Preprocess(size=(8, 8))(path)
        except UserError as e:
            refused += "bad" in str(e)
    assert refused > 5
