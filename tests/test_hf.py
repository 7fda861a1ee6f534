"""Hugging Face datasets on disk: Parquet files and the folders of `save_to_disk`, by pyarrow."""

import dataclasses
import json
import pickle
import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import run_command
from helpers.image_folders import constant_image, encode_png
from helpers.workdirs import CONFIG, SavedStep, write_workdir

from resflax import UserError
from resflax.data import load_dataset, load_split
from resflax.data.location import FeatureKeys
from resflax.data.roles import SplitChoice

NAMES = ("a", "b", "c")
COLOR = CONFIG._replace(
    spec=CONFIG.spec.override(num_classes=3),
    channels=3,
    labels=NAMES,
    preprocess=dataclasses.replace(CONFIG.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3),
)


def make_table(values, *, names=NAMES, image="img", label="label", extra=(), labels=None):
    """Returns a table as the library `datasets` 5.2.0 writes it: image i has the value i.

    Args:
      values: pixel values; the labels are their remainders by 3.
      names: class names in the metadata; None for a table that another library wrote.
      image: name of the image's column.
      label: name of the label's column.
      extra: names of further label columns.
      labels: labels in place of the remainders.
    """
    encoded = [{"bytes": encode_png(constant_image(v)), "path": f"{v}.png"} for v in values]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = [v % 3 for v in values] if labels is None else labels
    columns = {image: pa.array(encoded, struct)} | {
        key: pa.array(labels) for key in (label, *extra)
    }
    table = pa.table(columns)
    if names is None:
        return table
    features = {key: {"names": list(names), "_type": "ClassLabel"} for key in (label, *extra)}
    info = {"info": {"features": {image: {"_type": "Image"}} | features}}
    return table.replace_schema_metadata({"huggingface": json.dumps(info)})


SPLITS = {"train": range(30), "validation": range(100, 112), "test": range(200, 212)}


def write_parquet(path, table, row_group_size=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)


def write_stream(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def write_hub(root):
    """Writes a snapshot of the Hub, with the training split in two files."""
    for name, values in SPLITS.items():
        parts = (values[:11], values[11:]) if name == "train" else (values,)
        for i, part in enumerate(parts):
            file = root / "data" / f"{name}-{i:05}-of-{len(parts):05}.parquet"
            write_parquet(file, make_table(part))
    (root / "README.md").write_text("# A dataset")


def write_cache(root):
    write_hub(root / "snapshots" / "0123abcd")
    (root / "refs").mkdir()


def write_folders(root):
    for name, values in SPLITS.items():
        write_parquet(root / "default" / name / "0000.parquet", make_table(values))


def write_plain(root):
    for name, values in SPLITS.items():
        write_parquet(root / f"my-{name}.parquet", make_table(values))


def write_saved(root):
    for name, values in SPLITS.items():
        write_stream(root / name / "data-00000-of-00001.arrow", make_table(values))
        write_stream(root / name / "cache-12ab.arrow", make_table(range(3)))
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": name}
        (root / name / "state.json").write_text(json.dumps(state))
    (root / "dataset_dict.json").write_text(json.dumps({"splits": list(SPLITS)}))


LAYOUTS = {
    "Hub": write_hub,
    "cache of the Hub": write_cache,
    "folders of splits": write_folders,
    "files at the top": write_plain,
    "save_to_disk": write_saved,
}


def values_of(split):
    images, labels = split.get_batch(np.arange(len(split)))
    values = images[:, 0, 0, 0].tolist()
    np.testing.assert_array_equal(labels, np.array(values) % 3)
    return values


@pytest.mark.parametrize("size", [0, 8], ids=["in memory", "streamed"])
@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_has_its_splits_and_images(tmp_path, write, size):
    write(tmp_path)
    dataset = load_dataset(f"hf:{tmp_path}", image_size=size)
    assert dataset.names == tuple(SPLITS)
    assert dataset.classes == NAMES
    found = {name: values_of(pickle.loads(pickle.dumps(s))) for name, s in dataset.splits.items()}
    assert found == {name: list(values) for name, values in SPLITS.items()}


def test_examples_in_any_order_are_those_of_their_index(tmp_path):
    write_hub(tmp_path)
    source = load_split(f"hf:{tmp_path}", "train")
    order = np.random.default_rng(0).permutation(30)
    assert [int(source.read(int(i))[0][0, 0, 0]) for i in order] == order.tolist()
    assert source.file_name(5) == "5.png"
    assert source.fingerprint()["per_class"] == [10, 10, 10]


def test_fingerprint_changes_with_images_and_labels(tmp_path):
    tables = {
        "same": make_table(range(30)),
        "other images": make_table(range(3, 33)),
        "other labels": make_table(range(30), labels=[(v + 1) % 3 for v in range(30)]),
    }
    found = {}
    for name, table in tables.items():
        write_parquet(tmp_path / name / "train.parquet", table)
        found[name] = load_split(f"hf:{tmp_path / name}", "train").fingerprint()["files"]
    assert len({*found.values()}) == 3
    write_parquet(tmp_path / "moved" / "train.parquet", tables["same"])
    moved = load_split(f"hf:{tmp_path / 'moved'}", "train").fingerprint()
    assert moved["files"] == found["same"]


def test_one_file_holds_out_a_share(tmp_path):
    write_parquet(tmp_path / "images.parquet", make_table(range(30)))
    dataset = load_dataset(f"hf:{tmp_path}/images.parquet")
    assert [len(split) for split in dataset.splits.values()] == [27, 3]
    assert dataset.names.test == "train, held-out 0.1"
    held_out, trained = values_of(dataset.test), values_of(dataset.train)
    assert sorted([*held_out, *trained]) == list(range(30))
    assert {value % 3 for value in held_out} == {0, 1, 2}


def test_expressions_are_parts_of_splits(tmp_path):
    write_hub(tmp_path)
    splits = SplitChoice(train="train[:50%]+validation", validation="train[50%:]")
    dataset = load_dataset(f"hf:{tmp_path}", splits=splits)
    assert values_of(dataset.train) == [*range(15), *SPLITS["validation"]]
    assert values_of(dataset.validation) == [*range(15, 30)]
    with pytest.raises(UserError, match="have common examples"):
        load_dataset(f"hf:{tmp_path}", splits=SplitChoice(validation="train[50%:]"))


@pytest.mark.parametrize("names", [None, NAMES])
def test_unlabeled_test_split_is_not_used(tmp_path, names):
    for name, values in SPLITS.items():
        labels = [-1] * len(values) if name == "test" else None
        table = make_table(values, names=names, labels=labels)
        write_parquet(tmp_path / f"{name}.parquet", table)
    dataset = load_dataset(f"hf:{tmp_path}")
    assert (dataset.names, dataset.num_classes) == (("train", "", "validation"), 3)


def test_class_names_can_be_the_labels(tmp_path):
    words = ["cat", "dog", "owl"]
    for name, values in SPLITS.items():
        table = make_table(values, names=None, labels=[words[v % 3] for v in values])
        write_parquet(tmp_path / f"{name}.parquet", table)
    dataset = load_dataset(f"hf:{tmp_path}")
    assert dataset.classes == tuple(words)
    assert values_of(dataset.test) == list(SPLITS["test"])
    assert load_split(f"hf:{tmp_path}", "test").classes == tuple(words)


# The labels of two training images and a test image, and the classes.
LABELS = {
    "integers from 1": ([1, 2], 2, ("1", "2")),
    "large integers": ([10**12, 7], 7, ("7", str(10**12))),
    "text of numbers": (["10", "9"], "10", ("9", "10")),
    "composed accents": (["caf\u00e9", "tea"], "cafe\u0301", ("caf\u00e9", "tea")),
    "categories": (pa.array(["b", "a"]).dictionary_encode(), "b", ("a", "b")),
}


@pytest.mark.parametrize(("train", "test", "classes"), LABELS.values(), ids=LABELS)
def test_labels_without_names_are_the_classes(tmp_path, train, test, classes):
    write_parquet(tmp_path / "train.parquet", make_table([3, 4], names=None, labels=train))
    write_parquet(tmp_path / "test.parquet", make_table([5], names=None, labels=[test]))
    dataset = load_dataset(f"hf:{tmp_path}")
    assert dataset.classes == classes
    values = train.to_pylist() if isinstance(train, pa.Array) else train
    assert dataset.train.labels.tolist() == [classes.index(str(value)) for value in values]
    assert dataset.classes[dataset.test.labels[0]] == unicodedata.normalize("NFC", str(test))


def test_names_of_the_training_split_hold_for_all(tmp_path):
    write_parquet(tmp_path / "train.parquet", make_table(range(3), names=("2", "1", "0")))
    write_parquet(tmp_path / "test.parquet", make_table(range(3), names=None))
    assert load_dataset(f"hf:{tmp_path}").test.labels.tolist() == [0, 1, 2]


def test_example_without_a_label_is_skipped_if_held_out(tmp_path):
    labels = [None, *(v % 3 for v in range(29))]
    write_parquet(tmp_path / "train.parquet", make_table(range(30), labels=labels))
    dataset = load_dataset(f"hf:{tmp_path}", on_bad_example="skip")
    assert len(dataset.train) + len(dataset.test) == 29
    assert [split["examples"] for split in dataset.fingerprint()["splits"].values()] == [26, 3]


def test_bytes_without_a_path_are_images(tmp_path):
    images = pa.array([encode_png(constant_image(v)) for v in range(30)], pa.binary())
    write_parquet(
        tmp_path / "x.parquet", pa.table({"jpg": images, "cls": [v % 3 for v in range(30)]})
    )
    assert len(values_of(load_dataset(f"hf:{tmp_path}").train)) == 27


def test_images_beside_the_files_are_read_by_their_path(tmp_path):
    files = {f"{v}.png": encode_png(constant_image(v)) for v in range(30)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    images = [{"bytes": None, "path": name} for name in files]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, struct), "label": [v % 3 for v in range(30)]})
    write_parquet(tmp_path / "train.parquet", table)
    assert len(values_of(load_dataset(f"hf:{tmp_path}").train)) == 27


def write_two_labels(root):
    table = make_table(range(30), label="coarse", extra=("fine",))
    write_parquet(root / "train.parquet", table)


def write_corrupt(root):
    (root / "train.parquet").write_bytes(b"PAR1 is not enough")


def write_incomplete(root):
    write_saved(root)
    (root / "train" / "data-00000-of-00001.arrow").unlink()


def write_two_configurations(root):
    for name in ("de", "en"):
        write_parquet(root / name / "train-00000-of-00001.parquet", make_table(range(9)))


def write_no_labels(root):
    write_parquet(root / "train.parquet", make_table(range(9)).select(["img"]))


def write_no_images(root):
    write_parquet(root / "train.parquet", make_table(range(9)).select(["label"]))


def write_label_beyond_the_names(root):
    write_parquet(root / "train.parquet", make_table(range(9), names=("a", "b")))


def write_one_class(root):
    write_parquet(root / "train.parquet", make_table(range(9), labels=[1] * 9))


def write_other_case(root):
    write_parquet(root / "train.parquet", make_table([0, 1], names=None, labels=["cat", "dog"]))
    write_parquet(root / "test.parquet", make_table([2], names=None, labels=["Cat"]))


def write_float_labels(root):
    write_parquet(root / "train.parquet", make_table([0, 1], names=None, labels=[0.2, 1.7]))


def write_null_image(root):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array([None] * 30, struct), "label": [v % 3 for v in range(30)]})
    write_parquet(root / "train.parquet", table)


INVALID = {
    "missing": (
        lambda root: None,
        "has no .parquet or .arrow files: expected Parquet files such as",
    ),
    "two labels": (
        write_two_labels,
        "several columns with labels, coarse, fine: choose one with --",
    ),
    "corrupt": (write_corrupt, "train.parquet cannot be read: .*: write or download it again"),
    "incomplete": (write_incomplete, "data-00000-of-00001.arrow is missing: expected every file"),
    "configurations": (
        write_two_configurations,
        "several configurations, de, en: choose one, such",
    ),
    "no labels": (
        write_no_labels,
        "has the columns img, of which none has labels: expected one of",
    ),
    "no images": (write_no_images, "has the columns label, of which none has images: expected one"),
    "label": (write_label_beyond_the_names, "train has the label 2, which is not one of the 2 cla"),
    "one class": (
        write_one_class,
        "train: all 9 examples have the class 'b': expected examples of",
    ),
    "case of a class": (
        write_other_case,
        r"label 'Cat', .* \('cat', which it has, differs only in",
    ),
    "float labels": (write_float_labels, "none has labels: expected one of integers or text, such"),
    "null image": (write_null_image, r"train\[\d+\]: has no image: fix it, or skip it"),
}


@pytest.mark.parametrize(("write", "message"), INVALID.values(), ids=INVALID)
def test_invalid_dataset_is_one_line(tmp_path, write, message):
    write(tmp_path)
    with pytest.raises(UserError, match=message) as e:
        load_dataset(f"hf:{tmp_path}")
    assert "\n" not in str(e.value)


def test_columns_can_be_chosen(tmp_path):
    write_two_labels(tmp_path)
    name = f"hf:{tmp_path}"
    assert load_dataset(name, keys=FeatureKeys(label="fine")).classes == NAMES
    for key, reason in (("x", "that does not exist"), ("img", "without labels")):
        with pytest.raises(UserError, match=f"label_key is '{key}', a column {reason} in .*: exp"):
            load_dataset(name, keys=FeatureKeys(label=key))


def test_evaluation_takes_names_of_columns(tmp_path, capsys):
    write_two_labels(tmp_path)
    workdir = str(write_workdir(tmp_path / "run", SavedStep(1), config=COLOR))
    arguments = ("evaluate", workdir, f"--dataset=hf:{tmp_path}", "--split=train[:10]")
    assert run_command(*arguments) == 2
    assert "choose one with --config.data.label_key=coarse (evaluate: --" in capsys.readouterr().err
    run_command(*arguments, "--label-key=fine", "--calibrate=none")
    assert "train[:10], 10 examples of 3 classes" in capsys.readouterr().out


def test_average_takes_names_of_columns(tmp_path, capsys):
    write_two_labels(tmp_path)
    workdir = write_workdir(tmp_path / "run", SavedStep(1), SavedStep(2), config=COLOR)
    out = f"--out={tmp_path / 'average'}"
    arguments = ("average", f"{workdir}@1,2", f"--dataset=hf:{tmp_path}", out)
    assert run_command(*arguments) == 2
    assert "choose one with --config.data.label_key=coarse" in capsys.readouterr().err
    assert run_command(*arguments, "--label-key=fine") == 0
    assert " images of hf:" in capsys.readouterr().out


def test_missing_library_names_the_extra(tmp_path, monkeypatch):
    write_hub(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r'hf: needs pyarrow: pip install "resflax\[hf\]"'):
        load_dataset(f"hf:{tmp_path}")
    with pytest.raises(UserError, match=r"/none does not exist or is not a dataset: expected Parq"):
        load_dataset(f"hf:{tmp_path}/none")
