"""Classes of datasets and models: matched by name or number, restricted, refused."""

import importlib.resources
import json
from types import SimpleNamespace

import pytest

from resflax import UserError
from resflax.data.imagenet import development_kit_synsets, synsets
from resflax.evaluate.classes import (
    EXCLUDED,
    make_label_map,
    read_real_labels,
    read_valid_labels,
    real_labels_of,
)


class FileList(SimpleNamespace):
    """A source of `files`, for functions that read no pixels."""

    def __len__(self):
        return len(self.files)

    def file_name(self, index):
        return self.files[index]


def source(classes=(), files=()):
    return FileList(name="data/test", classes=tuple(classes), files=files)


def label_map(model, count, dataset, valid=()):
    return make_label_map(tuple(model), count, source(dataset), tuple(valid))


def test_equal_names_are_matched_in_any_order():
    mapped = label_map("abc", 3, "cab")
    assert mapped.labels.tolist() == [2, 0, 1]
    assert mapped.columns.tolist() == [0, 1, 2]
    assert mapped.names == ("a", "b", "c")


def test_accents_of_names_can_be_encoded_in_two_ways():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for model, dataset in (
        ((composed, "tea"), ("tea", decomposed)),
        ((decomposed, "x"), ("x", composed)),
    ):
        assert label_map(model, 2, dataset).labels.tolist() == [1, 0]
        assert label_map(model, 2, dataset, dataset).labels.tolist() == [0, 1]


@pytest.mark.parametrize(("dataset", "model"), [("Cat", "cat"), ("red  fox", "red fox")])
def test_names_that_differ_in_case_are_named(dataset, model):
    message = f"'{dataset}' in the dataset and '{model}' in the model differ in case or spaces"
    with pytest.raises(UserError, match=message):
        label_map((model, "dog"), 2, (dataset, "dog"))


def test_unknown_names_are_matched_by_number():
    mapped = label_map("", 3, ["cat", "dog", "owl"])
    assert mapped.labels.tolist() == [0, 1, 2]
    assert mapped.names == ("cat", "dog", "owl")
    assert label_map("abc", 3, "").labels.tolist() == [0, 1, 2]
    assert label_map("", 2, "").names == ("class 0", "class 1")


def test_numbers_as_names_of_a_dataset_are_no_names():
    """A TFDS dataset without class names has them."""
    mapped = label_map("abc", 3, "012")
    assert (mapped.labels.tolist(), mapped.names) == ([0, 1, 2], ("a", "b", "c"))
    assert label_map("210", 3, "012").labels.tolist() == [2, 1, 0]
    assert label_map("abcde", 5, "012", ("b", "d", "e")).columns.tolist() == [1, 3, 4]
    with pytest.raises(UserError, match="has 3 classes, the model 4"):
        label_map("abcd", 4, "012")


@pytest.mark.parametrize(
    ("model", "count", "dataset", "message"),
    [
        ("abc", 3, "abd", r"other classes than the model \('d' only in the dataset; 'c' only in"),
        ("abc", 3, "ab", r"has 2 classes, the model 3 \('c' only in the model\)"),
        ("", 10, "ab", "has 2 classes, the model 10: expected"),
        ("", 1000, ["n01440764", "n01443537"], "has 2 classes, the model 1000.*--valid-labels"),
        ("aab", 3, "abc", "other classes"),
    ],
)
def test_other_classes_are_refused_with_what_differs(model, count, dataset, message):
    with pytest.raises(UserError, match=message) as e:
        label_map(model, count, dataset)
    assert "\n" not in str(e.value)


def test_synsets_name_the_classes_of_imagenet():
    names = tuple(f"name {i // 2}" for i in range(1000))  # not unique
    assert label_map(names, 1000, synsets()).labels.tolist() == list(range(1000))
    mapped = label_map(names, 1000, development_kit_synsets())
    assert [synsets()[i] for i in mapped.labels] == list(development_kit_synsets())
    assert label_map(synsets(), 1000, synsets()).labels.tolist() == list(range(1000))


def test_synsets_of_a_model_are_its_classes():
    """A model for 1,000 other synsets is not one for ImageNet-1k."""
    other = tuple(f"n9{i:07}" for i in range(1000))
    assert label_map(other, 1000, other[::-1]).labels.tolist() == list(range(1000))[::-1]
    with pytest.raises(UserError, match="other classes"):
        label_map(other, 1000, synsets())
    chosen = synsets()[5:7]
    assert label_map(synsets(), 1000, chosen, chosen).columns.tolist() == [5, 6]


def test_development_kit_begins_with_its_known_classes():
    """Kit fox, English setter and Siberian husky are the IDs 1 to 3 of ILSVRC 2012."""
    assert development_kit_synsets()[:3] == ("n02119789", "n02100735", "n02110185")


@pytest.mark.parametrize("valid", [("1", "3", "4"), ("b", "d", "e")])
def test_valid_labels_restrict_a_dataset_of_these_classes(valid):
    mapped = label_map("abcde", 5, "bde", valid)
    assert mapped.columns.tolist() == [1, 3, 4]
    assert mapped.labels.tolist() == [0, 1, 2]
    assert mapped.names == ("b", "d", "e")


def test_valid_labels_exclude_other_classes_of_a_dataset():
    mapped = label_map("abcde", 5, "edcba", ("4", "1"))
    assert mapped.columns.tolist() == [4, 1]
    assert mapped.labels.tolist() == [0, EXCLUDED, EXCLUDED, 1, EXCLUDED]


def test_valid_labels_of_imagenet_can_be_synsets():
    chosen = [synsets()[i] for i in (6, 11, 999)]
    mapped = label_map("", 1000, chosen, chosen)
    assert mapped.columns.tolist() == [6, 11, 999]
    assert mapped.labels.tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="other classes"):
        label_map("", 1000, chosen, ("6", "11", "12"))


@pytest.mark.parametrize("subset", ["imagenet_a", "imagenet_r"])
def test_valid_labels_of_subsets_are_those_of_timm(subset):
    info = importlib.resources.files(pytest.importorskip("timm.data")) / "_info"
    wanted = tuple((info / f"{subset}_synsets.txt").read_text().split())
    indices = (info / f"{subset}_indices.txt").read_text().split()
    assert len(wanted) == 200
    assert label_map("", 1000, wanted, wanted).columns.tolist() == list(map(int, indices))


@pytest.mark.parametrize(
    ("valid", "message"),
    [
        (("z",), "'z' is not a class of the model: expected an index from 0 to 2"),
        (("3",), "'3' is not a class of the model"),
        (("a",), "'a' names 2 classes"),
        (("0", "0"), "class 0 twice"),
    ],
)
def test_invalid_valid_labels_are_errors(valid, message):
    with pytest.raises(UserError, match=message):
        label_map("aab", 3, "", valid)


def test_valid_labels_are_read_line_by_line(tmp_path):
    path = tmp_path / "valid.txt"
    path.write_text("3\n\n great grey owl \n")
    assert read_valid_labels(path) == ("3", "great grey owl")
    path.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_valid_labels(path)
    with pytest.raises(UserError, match="cannot read the valid labels"):
        read_valid_labels(tmp_path / "none.txt")


def test_real_labels_follow_the_numbers_of_the_files(tmp_path):
    path = tmp_path / "real.json"
    path.write_text(json.dumps([[1], [], [2, 3]]))
    labels = read_real_labels(path)
    names = [f"val/x/ILSVRC2012_val_0000000{number}.JPEG" for number in (3, 1)]
    assert real_labels_of(source(files=names), labels, path) == [[2, 3], [1]]
    assert real_labels_of(source(files=["", "", ""]), labels, path) == labels
    with pytest.raises(UserError, match="has 3 entries, data/test 2 examples"):
        real_labels_of(source(files=["a.png", "b.png"]), labels, path)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[[1.5]]", "[]", "[[-1]]"])
def test_malformed_real_labels_are_errors(tmp_path, text):
    path = tmp_path / "real.json"
    path.write_text(text)
    with pytest.raises(UserError, match="real.json"):
        read_real_labels(path)
