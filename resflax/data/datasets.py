"""Image-classification datasets by name: digits, noise, TFDS, or a folder of images."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from resflax.data.array_source import ArraySource
from resflax.data.class_names import describe_difference, similar_names
from resflax.data.crops import TrainCrop
from resflax.data.eval_transform import EvalTransform
from resflax.data.fingerprint import Fingerprint
from resflax.data.held_out import SourceSubset
from resflax.data.in_memory import InMemorySplit, read_all
from resflax.data.kinds import kind_of
from resflax.data.location import DEFAULT_KEYS, FeatureKeys, Location
from resflax.data.roles import DEFAULT_CHOICE, Roles, SplitChoice, open_roles
from resflax.data.source import Source, check_on_bad_example
from resflax.data.split_names import SplitNames
from resflax.data.streaming import StreamingSplit
from resflax.errors import UserError, quantity


@dataclass(frozen=True)
class Dataset:
    """A training, a test and perhaps a validation split, with the same classes and image shape.

    Attributes:
      name: the name given to `load_dataset`.
      train: the training split.
      test: the test split.
      classes: class names; label `i` is `classes[i]`.
      problems: problems of the dataset's layout that were skipped.
      validation: the validation split; None if there is none. A run that has one evaluates it
        during training, and the test split once, at the end.
      names: names of the splits.
      note: what was found, for the user.
      eval_sets: further splits by name, evaluated whenever a run evaluates during training.
    """

    name: str
    train: Any  # a `Split`; callers know whether it is in memory
    test: Any
    classes: tuple[str, ...]
    problems: tuple[str, ...] = ()
    validation: Any = None
    names: SplitNames = field(default_factory=SplitNames)
    note: str = ""
    eval_sets: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best_by(self) -> str:
        """Name of the split that is evaluated during training: "validation" or "test"."""
        return "test" if self.validation is None else "validation"

    @property
    def splits(self) -> dict[str, Any]:
        """The splits by name: "train", "validation" if there is one, "test", and `eval_sets`."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {k: split for k, split in splits.items() if split is not None} | {**self.eval_sets}

    def describe_splits(self) -> str:
        """Returns lines that say which examples are for training, validation and testing."""
        pairs = zip(self.names, (self.train, self.validation, self.test), strict=True)
        train, validation, test = (
            f"{name} ({quantity(len(split), 'example')})" if split is not None else ""
            for name, split in pairs
        )
        evaluated = f"{validation or test} is evaluated during training and chooses @best"
        at_end = f"; {test} is evaluated at the end" if validation else ""
        line = f"splits: trained on {train}; {evaluated}{at_end}"
        return f"{self.note}\n{line}" if self.note else line

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(height, width, channels)`, or `(*space, channels)` of arrays of another rank."""
        shape: tuple[int, ...] = self.train.image_shape
        return shape

    @property
    def has_arrays(self) -> bool:
        """Whether the examples have another rank than images, or another dtype than uint8."""
        if not isinstance(self.train, InMemorySplit):
            return False
        return self.train.images.ndim != 4 or self.train.images.dtype != np.uint8

    def with_normalization(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Dataset":
        """Returns the dataset with another `train.mean_std()`; () keeps the measured values.

        Raises:
          UserError: if the number of values is not the number of channels.
        """
        channels = self.image_shape[-1]
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (0, channels):
                raise UserError(
                    f"{name} is {tuple(values)}: expected one number for each of the {channels}"
                    f" channels of {self.name!r}"
                )
        if not mean and not std:
            return self
        measured = self.train.mean_std() if not (mean and std) else ((), ())
        override = (tuple(mean) or measured[0], tuple(std) or measured[1])
        return replace(self, train=replace(self.train, mean_std_override=override))

    def fingerprint(self) -> Fingerprint:
        """Returns what identifies the data, as JSON values; see `fingerprint_diff`.

        Returns:
          "classes", and "splits": what each split's `fingerprint` returns.
        """
        splits = {name: split.fingerprint() for name, split in self.splits.items()}
        return {"classes": list(self.classes), "splits": splits}

    @property
    def skipped(self) -> list[str]:
        """One line for each example or class skipped so far: where it is, and why."""
        lines = list(self.problems)
        for split in self.splits.values():
            skipped = split.skipped
            lines += skipped.values() if isinstance(skipped, dict) else skipped
        return lines


def load_dataset(
    name: str,
    data_dir: str = "",
    *,
    image_size: int = 0,
    channels: int = 0,
    on_bad_example: str = "raise",
    seed: int = 0,
    eval_transform: EvalTransform | None = None,
    splits: SplitChoice = DEFAULT_CHOICE,
    keys: FeatureKeys = DEFAULT_KEYS,
    train_crop: TrainCrop | None = None,
    roles: Roles | None = None,
) -> Dataset:
    """Opens a dataset by name.

    Args:
      name: "digits", which is included; a name of TensorFlow Datasets (TFDS) such as
        "fashion_mnist", "emnist/letters" or "mnist:3.*.*"; "folder:PATH" for
        `PATH/train/CLASS/*.jpg` and `PATH/test/CLASS/*.jpg`; "hf:PATH" for a Hugging Face dataset
        on disk; "npz:PATH" for arrays of any rank (see `resflax.data.arrays`); "ecg" for
        synthetic signals; or noise of a given size, "fake:224x224x3:1000:1024" (see
        `resflax.data.fake`).
      data_dir: folder of prepared TFDS datasets; "" is the default of TFDS (`$TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`).
      image_size: 0 to read a dataset with images of one size into memory. Otherwise images of any
        size are read on demand and resized to squares of this many pixels: `train_crop` in
        training, `eval_transform` in evaluation.
      channels: 1 or 3 to convert all images to gray or RGB; 0 for RGB if one of them has color (or
        `image_size` is given), else gray.
      on_bad_example: "raise", or "skip" to skip examples that cannot be used.
      seed: seed of the random crops and of the noise.
      eval_transform: resize and crop for evaluation, if `image_size` is given; by default to
        `image_size`, with the defaults of `EvalTransform`.
      splits: which examples are for training, validation and testing.
      keys: names of image and label in the examples of a TFDS or Hugging Face dataset.
      train_crop: crop of the training split, if `image_size` is given; by default Inception crops.
      roles: the examples, if they are opened already; `splits` and `keys` then have no effect.

    Raises:
      UserError: if the dataset does not exist, is not prepared, does not have images with one
        label each, or has an example that cannot be used.
    """
    check_on_bad_example(on_bad_example)
    if channels not in (0, 1, 3):
        raise UserError(f"channels is {channels}: expected 0, 1 or 3")
    is_in_memory = kind_of(name).is_in_memory
    if is_in_memory and (image_size or channels):
        raise UserError(
            f"dataset {name!r} has its own image size and channels: expected image_size 0 and"
            " channels 0"
        )
    roles = roles or open_roles(Location(name, data_dir, on_bad_example, seed, keys), splits)
    sources = {"train": roles.train, "validation": roles.validation, "test": roles.test}

    def open_split(role: str, source: Source) -> Any:
        if not image_size:
            return _read_into_memory(source, channels=channels, on_bad_example=on_bad_example)
        return StreamingSplit(
            source,
            image_size,
            channels or 3,
            seed if role == "train" else None,
            eval_transform,
            on_bad_example,
            crop=train_crop or TrainCrop(),
        )

    opened = {
        role: None if source is None else open_split(role, source)
        for role, source in sources.items()
    }
    dataset = _make_dataset(name, roles, opened if is_in_memory else _of_one_color(opened))
    if not image_size:
        _check_shapes(dataset)
    return dataset


def _of_one_color(splits: dict[str, Any]) -> dict[str, Any]:
    """Returns the splits with all images in color, if one split has color and another does not."""
    if {split.image_shape[-1] for split in splits.values() if split is not None} != {1, 3}:
        return splits
    return {role: split if split is None else split.in_color() for role, split in splits.items()}


def _make_dataset(name: str, roles: Roles, splits: dict[str, Any]) -> Dataset:
    """Makes a dataset of opened splits, with the problems and notes of their sources."""
    sources = filter(None, (roles.train, roles.validation, roles.test))
    problems = (problem for source in sources for problem in source.problems)
    similar = "".join(
        f"\nthe classes {' and '.join(map(repr, group))} differ only in case or spaces"
        for group in similar_names(roles.train.classes)[:3]
    )
    return Dataset(
        name,
        classes=roles.train.classes,
        problems=tuple(dict.fromkeys(problems)),
        names=roles.names,
        note=f"{roles.note}{similar}".lstrip("\n"),
        **splits,
    )


def add_eval_sets(dataset: Dataset, sources: Mapping[str, Source]) -> Dataset:
    """Returns the dataset with further splits to evaluate, read like its test split.

    Args:
      dataset: made by `load_dataset`.
      sources: the examples by name, with the classes of the dataset.

    Raises:
      UserError: if one has other classes or images of another shape.
    """
    opened: dict[str, Any] = {}
    for name, source in sources.items():
        if tuple(source.classes) != dataset.classes:
            difference = describe_difference(source.classes, [dataset.classes])
            raise UserError(
                f"eval_sets: {name!r} has other classes than {dataset.name!r}{difference}:"
                " expected the same ones in the same order"
            )
        if isinstance(dataset.test, StreamingSplit):
            opened[name] = replace(dataset.test, source=source, skipped={})
        else:
            channels = 0 if dataset.has_arrays else dataset.image_shape[-1]
            try:
                opened[name] = _read_into_memory(source, channels=channels, on_bad_example="raise")
            except UserError as e:
                raise UserError(f"eval_sets: {name!r}, which is read into memory: {e}") from e
    dataset = replace(dataset, eval_sets=opened)
    if not isinstance(dataset.test, StreamingSplit):
        _check_shapes(dataset)
    return dataset


def _read_into_memory(source: Source, *, channels: int, on_bad_example: str) -> InMemorySplit:
    """Reads a split into memory; see `read_all`."""
    if isinstance(source, SourceSubset) and isinstance(source.source, ArraySource):
        whole = source.source.split
        return InMemorySplit(whole.images[source.indices], whole.labels[source.indices])
    if isinstance(source, ArraySource):
        return source.split
    return read_all(source, channels=channels, on_bad_example=on_bad_example)


def _check_shapes(dataset: Dataset) -> None:
    for name, split in dataset.splits.items():
        if split.image_shape != dataset.image_shape:
            raise UserError(
                f"dataset {dataset.name!r} has training images of shape {dataset.image_shape} and"
                f" {name} images of shape {split.image_shape}: expected one shape"
            )
