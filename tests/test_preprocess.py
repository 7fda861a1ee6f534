"""Preprocessing, checked against direct PIL and NumPy code."""

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


def normalized(pixels):
    return (np.asarray(pixels, np.float64) / 255 - MEAN) / STD


def resized(image, height, width, resample=BICUBIC):
    return np.asarray(Image.fromarray(image).resize((width, height), resample))


@pytest.mark.parametrize(
    ("size", "fields", "expected"),
    [
        # 224 / 0.875 = 256 on the shorter side, 256 * 300 / 200 = 384 on the longer.
        ((200, 300), {}, lambda x: resized(x, 256, 384)[16:240, 80:304]),
        ((300, 200), {}, lambda x: resized(x, 384, 256)[80:304, 16:240]),
        # floor(224 / 0.95) = 235; floor(235 * 500 / 333) = 352 on the longer side.
        ((333, 500), {"crop_pct": 0.95}, lambda x: resized(x, 235, 352)[6:230, 64:288]),
        ((224, 224), {"crop_pct": 1.0}, lambda x: x),
        # Half-pixel crop offsets round to even: 55 -> 10 at 22, 65 -> 10 at 28.
        ((55, 65), {"size": (10, 10), "crop_pct": 10 / 55}, lambda x: x[22:32, 28:38]),
        ((30, 30), {"size": (20, 20), "crop_pct": 20 / 30}, lambda x: x[5:25, 5:25]),
        # "squash" does not keep the aspect ratio.
        (
            (50, 90),
            {"size": (32, 40), "crop_pct": 0.8, "crop_mode": "squash"},
            lambda x: resized(x, 40, 50)[4:36, 5:45],
        ),
        # Not square: 64 / 0.9 = 71 and 96 / 0.9 = 106 are covered by 71 x 107.9, rounded.
        (
            (200, 304),
            {"size": (64, 96), "crop_pct": 0.9},
            lambda x: resized(x, 71, 108)[4:68, 6:102],
        ),
        ((200, 300), {"size": (96, 64), "crop_pct": 1.0}, lambda x: resized(x, 96, 144)[:, 40:104]),
    ],
)
def test_resize_crop_and_normalize(size, fields, expected):
    image = noise(*size)
    output = Preprocess(**fields)(image)
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, normalized(expected(image)), atol=2e-6)


@pytest.mark.parametrize(
    ("name", "resample"),
    [
        ("nearest", Image.Resampling.NEAREST),
        ("bilinear", Image.Resampling.BILINEAR),
        ("bicubic", Image.Resampling.BICUBIC),
        ("lanczos", Image.Resampling.LANCZOS),
    ],
)
def test_interpolation_names_are_those_of_pil(name, resample):
    image = noise(40, 40)
    output = Preprocess(size=(24, 24), crop_pct=1.0, interpolation=name)(image)
    np.testing.assert_allclose(output, normalized(resized(image, 24, 24, resample)), atol=2e-6)


@settings(deadline=None, max_examples=60)
@given(
    image=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop_pct=st.floats(0.3, 1),
    mode=st.sampled_from(["center", "squash"]),
)
def test_output_has_the_requested_size_and_no_border(image, size, crop_pct, mode):
    """A white image stays white: a crop beyond the edge would add black pixels."""
    white = np.full((*image, 3), 255, np.uint8)
    preprocess = Preprocess(
        size=size,
        crop_pct=crop_pct,
        interpolation="bilinear",
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        crop_mode=mode,
    )
    np.testing.assert_array_equal(preprocess(white), np.ones((*size, 3), np.float32))


def test_path_image_and_array_give_the_same_output(tmp_path):
    pixels, preprocess = noise(30, 50), Preprocess(size=(16, 16))
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), image):
        np.testing.assert_array_equal(preprocess(source), preprocess(pixels))
    # Alpha is dropped; palette and grayscale images are expanded to three channels.
    np.testing.assert_array_equal(preprocess(image.convert("RGBA")), preprocess(pixels))
    gray = image.convert("L")
    np.testing.assert_array_equal(
        preprocess(gray), preprocess(np.stack([np.asarray(gray)] * 3, -1))
    )
    assert preprocess(image.convert("P")).shape == (16, 16, 3)


def test_single_mean_gives_one_channel():
    image = noise(8, 8)
    output = Preprocess(size=(8, 8), crop_pct=1.0, mean=(0.5,), std=(0.25,))(image)
    gray = image @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert output.shape == (8, 8, 1)
    np.testing.assert_allclose(output[..., 0], (gray / 255 - 0.5) / 0.25, atol=4 / 255)


def test_color_image_becomes_gray_before_the_resize():
    image = noise(40, 60)
    gray = np.asarray(Image.fromarray(image).convert("L").resize((12, 8), BICUBIC), np.float64)
    preprocess = Preprocess(
        size=(8, 12), crop_pct=1.0, crop_mode="squash", mean=(0.5,), std=(0.25,)
    )
    np.testing.assert_allclose(preprocess(image)[..., 0], (gray / 255 - 0.5) / 0.25, atol=1e-6)


def test_image_with_values_out_of_range_is_refused(tmp_path):
    image = Image.fromarray(np.full((8, 8), -1, np.int32))
    image.save(tmp_path / "deep.tif")
    for source in (image, tmp_path / "deep.tif"):
        with pytest.raises(UserError, match="has pixel values from -1 to -1: expected 0 to 65535"):
            Preprocess()(source)


def test_default_preprocess_of_each_kind_of_network():
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
        ({"size": (0, 8)}, r"size is \(0, 8\): expected two integers from 1 to 16384"),
        ({"crop_pct": 0.0}, "crop_pct is 0.0: expected a number above 0, at most 1"),
        ({"crop_pct": 1.5}, "crop_pct is 1.5: expected"),
        ({"crop_pct": float("nan")}, "crop_pct is nan: expected"),
        ({"std": (0.1, 0.0, 0.1)}, "and std of 1e-06 or more"),
        ({"mean": (0.1,)}, "as many in each"),
    ],
)
def test_invalid_preprocess_fields_are_rejected(fields, message):
    with pytest.raises(UserError, match=message):
        Preprocess(**fields)


@pytest.mark.parametrize("array", [np.zeros((8, 8, 3)), noise(8, 8)[..., 0], noise(8, 8)[..., :2]])
def test_array_of_another_dtype_or_shape_is_rejected(array):
    with pytest.raises(UserError, match=r"expected a uint8 image \(h, w, 3\): got "):
        Preprocess()(array)


def test_unreadable_image_error_is_one_line(tmp_path):
    with pytest.raises(UserError, match="image not found: .*no.png"):
        Preprocess()(tmp_path / "no.png")
    (tmp_path / "a.png").write_bytes(b"text")
    for path in (tmp_path / "a.png", tmp_path):
        with pytest.raises(UserError, match="is not a readable image") as e:
            Preprocess()(path)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp"])
def test_truncated_image_loads_or_raises_user_error(tmp_path, kind):
    whole = io.BytesIO()
    Image.fromarray(noise(20, 20)).save(whole, kind)
    data, part = whole.getvalue(), tmp_path / f"part.{kind}"
    rejected = 0
    for length in range(0, len(data), max(1, len(data) // 150)):
        part.write_bytes(data[:length])
        try:
            Preprocess(size=(8, 8))(part)
        except UserError:
            rejected += 1
    assert rejected > 100


@pytest.mark.parametrize("kind", ["png", "ppm"])
def test_corrupt_image_loads_or_raises_user_error(tmp_path, kind):
    whole, path = io.BytesIO(), tmp_path / f"bad.{kind}"
    Image.fromarray(noise(8, 8)).save(whole, kind)
    rejected = 0
    for i, _ in enumerate(whole.getvalue()):
        data = bytearray(whole.getvalue())
        data[i] ^= 0x40
        path.write_bytes(data)
        try:
            Preprocess(size=(8, 8))(path)
        except UserError as e:
            rejected += "bad" in str(e)
    assert rejected > 5


@pytest.mark.parametrize(
    "fields",
    [{"mean": (float("nan"),) * 3}, {"std": (1e-40,) * 3}, {"std": (float("inf"),) * 3}],
    ids=str,
)
def test_preprocess_refuses_moments_that_are_not_numbers(fields):
    with pytest.raises(UserError, match="expected finite numbers"):
        Preprocess(**fields)


def test_crop_pct_is_refused_if_it_enlarges_too_much():
    with pytest.raises(UserError, match="16384 pixels or less"):
        Preprocess(size=(224, 224), crop_pct=0.001)
