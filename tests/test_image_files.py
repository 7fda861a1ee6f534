"""Image files by path, glob and folder, decoded in threads."""

import numpy as np
import pytest
from helpers.image_folders import constant_image, encode_png
from PIL import Image

from resflax import UserError
from resflax.data import image_files
from resflax.data.decode import BadExampleError
from resflax.data.eval_transform import EvalTransform
from resflax.data.formats import image_suffixes
from resflax.data.image_files import check_images, find_images, read_batches
from resflax.files import open_atomic

FILES = [
    "b/2.png",
    "b/10.png",
    "a/x.JPG",
    "a/deep/er/y.webp",
    "top.tiff",
    "a/note.txt",
    ".hidden.png",
    "b/.hidden/z.png",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Makes a folder of empty files the current one."""
    for name in FILES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    monkeypatch.chdir(tmp_path)


ALL = [f"photos/{n}" for n in ("a/deep/er/y.webp", "a/x.JPG", "b/10.png", "b/2.png", "top.tiff")]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["photos"], ALL),
        (["photos/"], ALL),
        (["photos/b/2.png", "photos/a/note.txt"], ["photos/b/2.png", "photos/a/note.txt"]),
        (["photos/b/2.png", "photos/b"], ["photos/b/2.png", "photos/b/10.png", "photos/b/2.png"]),
        (["photos/**/*.png"], ["photos/b/10.png", "photos/b/2.png"]),
        (["photos/*.tiff", "photos/?/x.*"], ["photos/top.tiff", "photos/a/x.JPG"]),
        (["photos/.hidden.png"], ["photos/.hidden.png"]),
    ],
)
def test_find_images_expands_folders_and_globs(folder, patterns, expected):
    assert find_images(patterns) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("photos/none.png", "image not found: photos/none.png"),
        ("photos/*.gif", "no file matches photos/.*gif"),
        ("photos/empty", "folder photos/empty contains no images"),
    ],
)
def test_find_images_errors(folder, tmp_path, pattern, message):
    (tmp_path / "photos/empty/.hidden").mkdir(parents=True)
    (tmp_path / "photos/empty/note.txt").touch()
    with pytest.raises(UserError, match=message) as e:
        find_images([pattern])
    assert "\n" not in str(e.value)


def test_find_images_follows_links_once(folder, tmp_path):
    (tmp_path / "photos/b/loop").symlink_to(tmp_path / "photos/b")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/linked.png").touch()
    (tmp_path / "photos/b/link").symlink_to(tmp_path / "other")
    names = ["10.png", "2.png", "link/linked.png"]
    assert find_images(["photos/b"]) == [f"photos/b/{name}" for name in names]


def test_suffixes_are_those_of_formats_that_pillow_reads():
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".ppm"} <= image_suffixes()
    assert not {".txt", ".pdf", ".mpg", ".eps", ".h5", ".json"} & image_suffixes()


def test_check_images_finds_the_first_unreadable_file(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for path in paths:
        Image.new("RGB", (3, 3)).save(path)
    check_images(paths, num_threads=2)
    (tmp_path / "1.png").write_bytes(b"hello")
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(BadExampleError, match="1.png: is not a readable image"):
        check_images(paths, num_threads=2)
    with pytest.raises(BadExampleError, match="3.png: is empty"):
        check_images(paths[2:], num_threads=2)
    Image.new("RGB", (1, 3)).save(tmp_path / "3.png")
    with pytest.raises(BadExampleError, match="3.png: is 1x3 pixels: expected 2 or more"):
        check_images(paths[2:], num_threads=2)


@pytest.fixture
def numbered(tmp_path):
    """Ten images, image i with the value i, of which number 3 is truncated."""
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(encode_png(constant_image(i, 9, 5 + i)))
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:50])
    return [str(tmp_path / f"{i}.png") for i in range(10)]


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_batches_have_all_readable_images_in_order(numbered, num_threads, channels):
    bad = []
    batches = list(
        read_batches(
            numbered,
            EvalTransform(size=(4, 4)),
            channels,
            4,
            num_threads=num_threads,
            on_bad=bad.append,
        )
    )
    assert [indices for indices, _ in batches] == [[0, 1, 2, 4], [5, 6, 7, 8], [9]]
    for indices, pixels in batches:
        expected = np.broadcast_to(
            np.reshape(indices, (-1, 1, 1, 1)), (len(indices), 4, 4, channels)
        )
        np.testing.assert_array_equal(pixels, expected)
    assert [e.location for e in bad] == [numbered[3]]


def test_batches_are_decoded_a_few_ahead(numbered, monkeypatch):
    """Memory does not depend on the number of files."""
    calls = []
    decode = image_files.decode
    monkeypatch.setattr(image_files, "decode", lambda *args: calls.append(args) or decode(*args))
    transform = EvalTransform(size=(4, 4))
    batches = read_batches(
        1000 * numbered[:1], transform, 3, 5, num_threads=3, on_bad=lambda e: None
    )
    next(batches)
    batches.close()  # ends the threads
    assert 5 <= len(calls) <= 5 + 2 * 5 + 3


def test_batches_end_with_the_exception_of_on_bad(numbered):
    def on_bad(error):
        raise UserError(str(error))

    transform = EvalTransform(size=(4, 4))
    with pytest.raises(UserError, match="3.png: is not a readable image"):
        list(read_batches(numbered, transform, 3, 2, num_threads=2, on_bad=on_bad))


def test_open_atomic_leaves_the_old_file_on_an_exception(tmp_path):
    path = tmp_path / "file"
    with open_atomic(path) as file:
        file.write(b"old")
        assert not path.exists()
    with pytest.raises(TypeError), open_atomic(path) as file:
        file.writelines([b"new", "not bytes"])
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
