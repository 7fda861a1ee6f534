"""Decoded pixels of image files: orientation, 16 bits and floats, transparency, modes."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from resflax.data.decode import BadExampleError, convert_image, decode
from resflax.data.eval_transform import EvalTransform
from resflax.data.image_files import check_images, read_batches
from resflax.weights import Preprocess

RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (6, 9, 3), np.uint8)
# Smooth, so that lossy formats change it little.
RAMP = np.stack(np.broadcast_arrays(*np.ogrid[0:240:16j, 0:240:24j], 0), -1).astype(np.uint8)
# The stored pixels of an image whose upright pixels are `x`, by orientation (EXIF 2.32, 4.6.4).
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}

LITTLE_LOSS = {
    "png": {},
    "tiff": {},
    "webp": {"lossless": True},
    "jpeg": {"quality": 98, "subsampling": 0},
}


def encode(image, suffix, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, suffix, **options
    )
    return file.getvalue()


def exif(orientation):
    data = Image.Exif()
    data[ExifTags.Base.Orientation] = orientation
    return data.tobytes()


def oriented(orientation, suffix="png", upright=COLORS):
    stored = np.ascontiguousarray(STORED[orientation](upright))
    return encode(stored, suffix, exif=exif(orientation), **LITTLE_LOSS[suffix])


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpeg"])
def test_exif_orientation_gives_upright_pixels(suffix, orientation):
    upright = RAMP if suffix == "jpeg" else COLORS
    pixels = decode(oriented(orientation, suffix, upright), "x").astype(int)
    assert pixels.shape == upright.shape
    assert np.abs(pixels - upright).max() <= (12 if suffix == "jpeg" else 0)


def orientation_entry(kind, value):
    """Returns an EXIF block with one entry, the orientation, of a type (EXIF 2.32, 4.6.2)."""
    header = b"Exif\0\0II*\0" + struct.pack("<I", 8)
    return header + struct.pack("<HHHII", 1, 0x112, kind, 1, value) + bytes(4)


CORRUPT_EXIF = {
    "no TIFF header": b"Exif\0\0nothing of the kind",
    "offset past the end": b"Exif\0\0II*\0" + struct.pack("<I", 10**6),
    "more entries than bytes": orientation_entry(3, 6)[:20],
    "orientation 9": orientation_entry(3, 9),
    "text": orientation_entry(2, 0x36363636),
    "unknown type": orientation_entry(99, 6),
}


@pytest.mark.parametrize("block", CORRUPT_EXIF.values(), ids=CORRUPT_EXIF)
@pytest.mark.parametrize("suffix", ["jpeg", "png", "webp"])
def test_images_with_corrupt_exif_are_used_without_warnings(suffix, block, recwarn):
    data = encode(RAMP, suffix, exif=block, **LITTLE_LOSS[suffix])
    assert np.abs(decode(data, "x").astype(int) - RAMP).max() <= 12
    assert not recwarn.list


DEEP = np.array([[0, 128, 32896], [32768, 65279, 65535], [257, 385, 386]], np.uint16)
DEEP_8 = np.array([[0, 0, 128], [128, 254, 255], [1, 1, 2]])  # divided by 257, rounded
DARK_8 = np.array([[0, 0, 0], [0, 1, 1], [0, 0, 0]])  # 254 and 255, divided by 257, are almost 1
UNIT = np.array([[0, 0.25, 0.5], [0.75, 1, 0.1]], np.float32)
UNIT_8 = np.array([[0, 64, 128], [191, 255, 26]])  # times 255, rounded: 63.75, 127.5, 191.25, 25.5


def pgm(pixels, limit):
    height, width = pixels.shape
    return b"P5 %d %d %d\n" % (width, height, limit) + pixels.astype(">u2").tobytes()


def big_endian_tiff(pixels):
    image = Image.frombytes("I;16B", pixels.shape[::-1], pixels.astype(">u2").tobytes())
    return encode(image, "tiff")


def png(rows, width, depth, color_type, *chunks):
    """Returns a PNG of rows of packed samples (PNG specification, 5.3)."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, len(rows), depth, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = ((b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(pixels, **tags):
    """Returns an uncompressed TIFF of 16 bits; `tags` are others than those of a gray image."""
    bits, channels = 8 * pixels.itemsize, pixels.size // (pixels.shape[-1] * pixels.shape[-2])
    values = {256: pixels.shape[-1], 257: pixels.shape[-2], 258: bits, 259: 1, 262: 1}
    values |= {277: channels, 278: pixels.shape[-2], 279: pixels.nbytes}
    values |= {int(tag[1:]): value for tag, value in tags.items()}
    values[273] = 8 + 2 + 12 * (len(values) + 1) + 4
    entries = (struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    header = b"II*\0" + struct.pack("<IH", 8, len(values))
    return header + b"".join(entries) + bytes(4) + pixels.tobytes()


DEEP_IMAGES = {
    "16-bit PNG": (encode(DEEP, "png"), DEEP_8),
    "16-bit TIFF": (encode(DEEP, "tiff"), DEEP_8),
    "16-bit TIFF, big-endian": (big_endian_tiff(DEEP), DEEP_8),
    "16-bit PGM": (pgm(DEEP, 65535), DEEP_8),
    "dark 16-bit PNG": (encode(DEEP // 257, "png"), DARK_8),
    "dark 16-bit PGM": (pgm(DEEP // 257, 65535), DARK_8),
    "10-bit PGM": (pgm(np.array([[0, 1023], [512, 4]]), 1023), np.array([[0, 255], [128, 1]])),
    "float TIFF, 0 to 1": (encode(UNIT, "tiff"), UNIT_8),
    "float TIFF, 0 to 1 but for rounding": (encode(UNIT * np.float32(1.0003), "tiff"), UNIT_8),
    "float PFM, 0 to 1": (encode(UNIT, "ppm"), UNIT_8),
    "16-bit TIFF, white is zero": (tiff(65535 - DEEP, t262=0), DEEP_8),
    "float TIFF, 0 to 255": (encode(DEEP_8.astype(np.float32), "tiff"), DEEP_8),
    "float TIFF, 0 to 65535": (encode(DEEP.astype(np.float32), "tiff"), DEEP_8),
    "32-bit TIFF, 0 to 255": (encode(DEEP_8.astype(np.int32), "tiff"), DEEP_8),
    "32-bit TIFF, 0 to 1": (encode(np.eye(3, dtype=np.int32), "tiff"), np.eye(3)),
    "32-bit TIFF, 0 to 65535": (encode(DEEP.astype(np.int32), "tiff"), DEEP_8),
}


@pytest.mark.parametrize(("data", "expected"), DEEP_IMAGES.values(), ids=DEEP_IMAGES)
def test_16_bit_and_float_images_are_scaled(data, expected):
    assert decode(data, "x")[..., 0].tolist() == expected.tolist()
    assert decode(data, "x", 3).tolist() == np.repeat(expected[..., None], 3, -1).tolist()


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.array([[-1, 0], [1, 1]], np.int32), "from -1 to 1"),
        (np.array([[0, 65536], [1, 1]], np.int32), "from 0 to 65536"),
        (np.array([[0, np.nan], [1, 1]], np.float32), "from nan to nan"),
        (np.array([[0, np.inf], [1, 1]], np.float32), "from 0 to inf"),
        (np.array([[-0.5, 0], [1, 1]], np.float32), "from -0.5 to 1"),
    ],
    ids=["negative", "above 65535", "NaN", "infinite", "negative float"],
)
def test_pixel_values_out_of_range_are_named(pixels, reason):
    with pytest.raises(BadExampleError, match=f"^x: has pixel values {reason}: expected 0 to 655"):
        decode(encode(pixels, "tiff"), "x")


def test_16_bit_channels_in_planes_are_refused():
    data = tiff(np.stack([DEEP, DEEP, DEEP]), t262=2, t284=2)
    with pytest.raises(BadExampleError, match="^x: is a TIFF of more than 8 bits whose channels"):
        decode(data, "x")


def with_alpha(mode, color, alpha):
    """Returns a 2x2 image of one color whose alpha is `alpha` on the left and 255 on the right."""
    image = Image.new(mode, (2, 2), (*color, 255))
    image.paste((*color, alpha), (0, 0, 1, 2))
    return image


def on_white(color, alpha):
    """Composites colors from 0 to 255 on white by the definition of alpha."""
    return [round(c * alpha / 255 + 255 * (1 - alpha / 255)) for c in color]


def paletted(transparency, suffix="png"):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(0, (0, 0, 1, 2))
    return encode(image, suffix, transparency=transparency)


def keyed(mode, color):
    """Returns a PNG whose left half has the transparent color."""
    image = Image.new(mode, (2, 2), color)
    image.paste(COLOR if mode == "RGB" else 255, (1, 0, 2, 2))
    return encode(image, "png", transparency=color)


def gray_key(depth, row, key):
    """Returns a gray PNG of 2x2 pixels of `depth` bits, of which those of value `key` are clear."""
    return png([row] * 2, 2, depth, 0, (b"tRNS", struct.pack(">H", key)))


COLOR = (200, 100, 50)
# Encoded images of two columns, and the colors of the columns.
TRANSPARENT = {
    "RGBA, alpha 0": (encode(with_alpha("RGBA", COLOR, 0), "png"), (255,) * 3, COLOR),
    "RGBA, alpha 100": (
        encode(with_alpha("RGBA", COLOR, 100), "png"),
        on_white(COLOR, 100),
        COLOR,
    ),
    "LA, alpha 0": (encode(with_alpha("LA", (90,), 0), "png"), (255,), (90,)),
    "LA, alpha 51": (encode(with_alpha("LA", (90,), 51), "png"), on_white((90,), 51), (90,)),
    "LA TIFF": (encode(with_alpha("LA", (90,), 51), "tiff"), on_white((90,), 51), (90,)),
    "RGBA WebP": (encode(with_alpha("RGBA", COLOR, 0), "webp", lossless=True), (255,) * 3, COLOR),
    "P, one index": (paletted(0), (255,) * 3, COLOR),
    "P, bytes": (paletted(b"\x64\xff"), on_white((10, 20, 30), 100), COLOR),
    "GIF": (paletted(0, "gif"), (255,) * 3, COLOR),
    "RGB, color key": (keyed("RGB", (1, 2, 3)), (255,) * 3, COLOR),
    "L, color key": (keyed("L", 7), (255,), (255,)),
    "L, key beside gray": (encode(Image.new("L", (2, 2), 9), "png", transparency=7), (9,), (9,)),
    "1, color key": (keyed("1", 0), (255,), (255,)),
    "2 bits, color key": (gray_key(2, b"\x60", 1), (255,), (170,)),
    "4 bits, color key": (gray_key(4, b"\x1a", 1), (255,), (170,)),
    "16-bit RGB, color key": (
        png(
            [struct.pack(">6H", 300, 5, 60000, 51400, 25700, 12850)] * 2,
            2,
            16,
            2,
            (b"tRNS", struct.pack(">3H", 300, 5, 60000)),
        ),
        (255,) * 3,
        COLOR,
    ),
}


@pytest.mark.parametrize(("data", "left", "right"), TRANSPARENT.values(), ids=TRANSPARENT)
def test_transparent_pixels_are_composited_on_white(data, left, right, recwarn):
    pixels = decode(data, "x")
    assert pixels.shape == (2, 2, len(left))
    assert np.abs(pixels[:, 0].astype(int) - left).max() <= 1
    assert (pixels[:, 1] == right).all()
    assert decode(data, "x", 1).shape == (2, 2, 1)
    assert not recwarn.list


def test_16_bit_color_keys_are_white():
    pixels = np.array([[300, 600], [300, 65535]], np.uint16)
    data = encode(pixels, "png", transparency=300)
    assert decode(data, "x")[..., 0].tolist() == [[255, 2], [255, 255]]


@pytest.mark.parametrize("mode", ["La", "PA", "RGBa", "RGBX", "HSV", "YCbCr", "LAB", "CMYK", "1"])
def test_images_of_every_mode_are_converted(mode):
    rgb = Image.new("RGB", (3, 2), "white")
    image = Image.new("LAB", (3, 2), (255, 128, 128)) if mode == "LAB" else None
    for source in ("LA", "RGBA", "RGB"):
        try:
            image = image or rgb.convert(source).convert(mode)
        except ValueError:
            continue
    channels = 1 if mode in ("La", "1") else 3
    pixels = convert_image(image, "x")
    assert pixels.shape == (2, 3, channels)
    assert pixels.min() >= 254
    assert convert_image(image, "x", 1).shape == (2, 3, 1)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_are_their_first_frame(suffix):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    options = {"save_all": True, "append_images": frames[1:], **LITTLE_LOSS.get(suffix, {})}
    data = encode(frames[0], suffix, **options)
    assert (decode(data, "x", 3) == (255, 0, 0)).all()


SAMPLES = {
    "rotated.png": (oriented(6), COLORS),
    "deep.png": (encode(DEEP.repeat(3, 1), "png"), DEEP_8.repeat(3, 1)[..., None].repeat(3, -1)),
    "float.tif": (encode(UNIT, "tiff"), UNIT_8[..., None].repeat(3, -1)),
    "alpha.png": (encode(with_alpha("LA", (90,), 0), "png"), None),
    "palette.png": (paletted(b"\x64\xff"), None),
    "anim.gif": (paletted(0, "gif"), None),
    "photo.webp": (encode(COLORS, "webp", lossless=True), COLORS),
    "photo.tif": (encode(COLORS, "tiff"), COLORS),
    "photo.bmp": (encode(COLORS, "bmp"), COLORS),
    "cmyk.jpg": (encode(Image.fromarray(RAMP).convert("CMYK"), "jpeg"), None),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_predict_and_preprocess_read_the_same_pixels(tmp_path, name, capfd):
    data, expected = SAMPLES[name]
    expected = decode(data, name, 3) if expected is None else expected
    path = tmp_path / name
    path.write_bytes(data)
    check_images([str(path)], num_threads=1)
    transform = EvalTransform(size=expected.shape[:2], crop_pct=1.0)
    batches = read_batches([str(path)], transform, 3, 1, num_threads=1, on_bad=pytest.fail)
    assert next(batches)[1][0].tolist() == expected.tolist()
    preprocess = Preprocess(size=expected.shape[:2], crop_pct=1.0, mean=(0,) * 3, std=(1,) * 3)
    np.testing.assert_allclose(preprocess(path), expected / 255, atol=1e-6)
    with Image.open(path) as image:
        np.testing.assert_allclose(preprocess(image), expected / 255, atol=1e-6)
    assert capfd.readouterr().err == ""


def test_missing_file_is_named_once(tmp_path):
    with pytest.raises(BadExampleError) as e:
        decode(tmp_path / "x.png", "x.png")
    assert str(e.value) == "x.png: is not a readable image (No such file or directory)"
