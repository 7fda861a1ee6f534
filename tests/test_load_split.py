"""One split of a dataset for evaluation: folders, flat folders with labels, TFDS, digits, noise."""

import numpy as np
import pytest
from helpers.image_folders import constant_image, prepare_stripes, write_folder

from resflax import UserError
from resflax.data import load_dataset, load_split
from resflax.data.imagenet import GROUND_TRUTH, development_kit_synsets, synsets


def examples(source, channels=0):
    """Returns the first pixel and the label of each example."""
    read = [source.read(i, channels) for i in range(len(source))]
    return [(int(pixels[0, 0, 0]), label) for pixels, label in read]


@pytest.fixture
def folder(tmp_path):
    files = {
        "train/a/1.png": constant_image(1),
        "train/b/2.png": constant_image(2),
        "test/b/4.png": constant_image(4),
        "test/a/3.png": constant_image(3),
        "extra/b/5.png": constant_image(5),
    }
    write_folder(tmp_path, files)
    return tmp_path


def test_folder_split_is_that_of_the_training_command(folder):
    source = load_split(f"folder:{folder}")
    dataset = load_dataset(f"folder:{folder}")
    assert source.classes == dataset.classes
    np.testing.assert_array_equal([label for _, label in examples(source)], dataset.test.labels)
    assert examples(source) == [(3, 0), (4, 1)]
    assert examples(load_split(f"folder:{folder}", "train")) == [(1, 0), (2, 1)]


def test_folder_of_class_folders_is_one_split(folder):
    assert examples(load_split(f"folder:{folder}/test")) == [(3, 0), (4, 1)]


def test_only_the_chosen_split_is_read(folder):
    (folder / "train" / "a" / "1.png").write_bytes(b"")
    assert examples(load_split(f"folder:{folder}")) == [(3, 0), (4, 1)]


def test_folder_split_without_images_of_a_class_is_refused(folder):
    with pytest.raises(UserError, match="extra: has no images of class 'a' of the training split"):
        load_split(f"folder:{folder}", "extra")
    source = load_split(f"folder:{folder}", "extra", on_bad_example="skip")
    assert (examples(source), source.classes) == ([(5, 1)], ("a", "b"))


def test_digits_split_equals_that_of_the_training_command():
    source, dataset = load_split("digits"), load_dataset("digits")
    images = np.stack([source.read(i)[0] for i in range(len(source))])
    np.testing.assert_array_equal(images, dataset.test.images)
    assert source.classes == dataset.classes
    assert source.read(0, 3)[0].shape == (8, 8, 3)
    assert len(load_split("digits", "train")) == 1437


def test_noise_split_depends_on_the_seed():
    name = "fake:4x4x3:5:16"
    images = load_dataset(name, seed=7).test.images
    source = load_split(name, seed=7)
    np.testing.assert_array_equal(source.read(1)[0], images[1])
    assert len(load_split(name, "train")) == 16


def test_tfds_split_can_be_chosen(tmp_path):
    data_dir = prepare_stripes(tmp_path)
    assert len(load_split("stripes", data_dir=data_dir)) == 3
    assert len(load_split("stripes", "train", data_dir=data_dir)) == 5
    with pytest.raises(UserError, match="unknown split 'test': expected one of train, validation"):
        load_split("stripes", "test", data_dir=data_dir)


FLAT = {f"ILSVRC2012_val_0000000{i}.JPEG": i for i in (1, 2, 4)}


@pytest.fixture
def flat(tmp_path):
    """A folder with three of ImageNet's validation images, identified by their pixel values."""
    from PIL import Image

    root = tmp_path / "val"
    root.mkdir()
    for name, value in FLAT.items():
        Image.fromarray(constant_image(value, 16, 16)).save(root / name)
    return root


def load_flat(root, name, text, class_names=()):
    path = root.parent / name
    path.write_text(text)
    return load_split(f"folder:{root}", labels_file=str(path), class_names=class_names)


def test_flat_folder_takes_indices_by_image_number(flat):
    source = load_flat(flat, "labels.txt", "7\n0\n3\n2\n")
    assert examples(source) == [(1, 7), (2, 0), (4, 2)]
    assert source.classes == ()
    assert source.location(1).endswith("val/ILSVRC2012_val_00000002.JPEG")


def test_flat_folder_takes_synsets(flat):
    lines = [synsets()[i] for i in (5, 999, 0, 17)]
    source = load_flat(flat, "labels.txt", "\n".join(lines))
    assert examples(source) == [(1, 5), (2, 999), (4, 17)]
    assert source.classes == synsets()


def test_flat_folder_takes_the_official_ground_truth(flat):
    source = load_flat(flat, GROUND_TRUTH, "490\n361\n171\n1000\n")
    labels = [synsets().index(development_kit_synsets()[i - 1]) for i in (490, 361, 1000)]
    assert [label for _, label in examples(source)] == labels
    # The first validation image is a sea snake, class 65 of the networks.
    assert labels[0] == 65


def test_flat_folder_takes_class_names_of_the_model(flat):
    source = load_flat(flat, "labels.txt", "cat\ndog\ncat\ncat\n", ("cat", "dog"))
    assert examples(source) == [(1, 0), (2, 1), (4, 0)]


def test_labels_of_a_flat_folder_are_matched_by_their_letters(flat):
    """Accents can be encoded in two ways; another case is not the same name."""
    source = load_flat(
        flat, "labels.txt", "\ufeffcafe\u0301\ntea\ntea\ntea\n", ("caf\u00e9", "tea")
    )
    assert examples(source) == [(1, 0), (2, 1), (4, 1)]
    with pytest.raises(
        UserError, match="'Tea', .* but 'tea', which differs only in case or spaces"
    ):
        load_flat(flat, "labels.txt", "Tea\ntea\ntea\ntea\n", ("caf\u00e9", "tea"))


def test_hidden_files_of_a_flat_folder_have_no_label(flat):
    (flat / "._ILSVRC2012_val_00000001.JPEG").write_bytes(b"Mac OS X")
    (flat / ".hidden.png").write_bytes(b"")
    source = load_flat(flat, "labels.txt", "7\n0\n3\n")
    assert examples(source) == [(1, 7), (2, 0), (4, 3)]


def test_index_beyond_the_classes_of_the_model_is_refused(flat):
    path = flat.parent / "labels.txt"
    path.write_text("0\n1\n10\n")
    for names in ((), tuple("abcdefghij")):
        with pytest.raises(UserError, match="has the label 10: expected indices from 0 to 9"):
            load_split(f"folder:{flat}", labels_file=str(path), class_names=names, num_classes=10)


def test_flat_folder_takes_a_csv(flat):
    rows = "path,label\nILSVRC2012_val_00000004.JPEG,1\nILSVRC2012_val_00000001.JPEG,0\n"
    assert examples(load_flat(flat, "labels.csv", rows)) == [(4, 1), (1, 0)]
    rows = rows.replace("path", "file").replace(",", "\t")
    assert examples(load_flat(flat, "labels.tsv", rows)) == [(4, 1), (1, 0)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.txt", "1\n2\n", "has 2 labels for 3 images"),
        ("labels.txt", "cat\ndog\nowl\ncat\n", "label 'cat', which is not a class of the model"),
        (GROUND_TRUTH, "1\n2\n3\n1001\n", "'1001': expected an ID from 1 to 1000"),
        ("labels.csv", "id,kind\na,1\n", "has the columns id, kind: expected a CSV"),
        ("labels.csv", "path,label\nnone.png,1\n", "has the image none.png"),
        ("labels.csv", "path,label\nnone.png,\n", "has no label in row 2"),
    ],
)
def test_invalid_labels_file_is_an_error(flat, name, text, message):
    with pytest.raises(UserError, match=message) as e:
        load_flat(flat, name, text)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("folder:{root}/none", {}, "does not exist"),
        ("folder:{root}", {"split": "tets"}, "unknown split 'tets'"),
        ("digits", {"split": "val"}, "unknown split 'val'"),
        ("digits", {"labels_file": "x.txt"}, "expected a dataset folder:PATH"),
        ("folder:{root}", {"labels_file": "/none.txt"}, "cannot read the labels file"),
        ("folder:{root}/test/a", {}, "need a labels file"),
    ],
)
def test_missing_split_is_an_error(folder, name, options, message):
    with pytest.raises(UserError, match=message) as e:
        load_split(name.format(root=folder), **options)
    assert "\n" not in str(e.value)
