"""Image-classification datasets by name: digits, noise, TFDS, or a folder of images."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from resflax.data.crops import TrainCrop
from resflax.data.eval_transform import EvalTransform
from resflax.data.fake import is_fake, make_fake
from resflax.data.fingerprint import Fingerprint
from resflax.data.folder import open_folder
from resflax.data.in_memory import read_all
from resflax.data.source import Source, check_on_bad_example
from resflax.data.split_names import SplitNames
from resflax.data.streaming import StreamingSplit
from resflax.errors import UserError
from resflax.files import user_path

FOLDER_PREFIX = "folder:"


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
    """

    name: str
    train: Any  # a `Split`; callers know whether it is in memory
    test: Any
    classes: tuple[str, ...]
    problems: tuple[str, ...] = ()
    validation: Any = None
    names: SplitNames = field(default_factory=SplitNames)

    @property
    def best_by(self) -> str:
        """Name of the split that is evaluated during training: "validation" or "test"."""
        return "test" if self.validation is None else "validation"

    @property
    def splits(self) -> dict[str, Any]:
        """The splits by name: "train", "validation" if there is one, and "test"."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        shape: tuple[int, int, int] = self.train.image_shape
        return shape

    def with_normalization(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Dataset":
        """Returns the dataset with another `train.mean_std()`; () keeps the measured values.

        Raises:
          UserError: if the number of values is not the number of channels.
        """
        channels = self.image_shape[2]
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
          "classes", and "splits": the number of "examples" of each split, and a digest of
          their contents (in memory), file names and sizes (a folder), or their version (TFDS).
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
    train_crop: TrainCrop | None = None,
) -> Dataset:
    """Opens a dataset by name.

    Args:
      name: "digits", which is included; a name of TensorFlow Datasets (TFDS) such as
        "fashion_mnist", "emnist/letters" or "mnist:3.*.*"; "folder:PATH" for
        `PATH/train/CLASS/*.jpg` and `PATH/test/CLASS/*.jpg` (or png); or noise of a given size,
        "fake:224x224x3:1000:1024" (see `resflax.data.fake`).
      data_dir: folder of prepared TFDS datasets; "" is the default of TFDS (`$TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`).
      image_size: 0 to read a dataset with images of one size into memory. Otherwise images of any
        size are read on demand and resized to squares of this many pixels: `train_crop` in
        training, `eval_transform` in evaluation.
      channels: 1 or 3 to convert all images to gray or RGB; 0 to keep the number that all images
        share (3 if `image_size` is given).
      on_bad_example: "raise", or "skip" to skip examples that cannot be used.
      seed: seed of the random crops and of the noise.
      eval_transform: resize and crop of the test split, if `image_size` is given; by default to
        `image_size`, with the defaults of `EvalTransform`.
      train_crop: crop of the training split, if `image_size` is given; by default Inception crops.

    Raises:
      UserError: if the dataset does not exist, is not prepared, does not have images with one
        label each, or has an example that cannot be used.
    """
    check_on_bad_example(on_bad_example)
    if channels not in (0, 1, 3):
        raise UserError(f"channels is {channels}: expected 0, 1 or 3")
    if (name == "digits" or is_fake(name)) and (image_size or channels):
        raise UserError(
            f"dataset {name!r} has its own image size and channels: expected image_size 0 and"
            " channels 0"
        )
    if name == "digits":
        return _load_digits()
    if is_fake(name):
        return Dataset(name, *make_fake(name, seed))
    train, test = _open_sources(name, data_dir, on_bad_example)
    if image_size:
        splits = [
            StreamingSplit(
                source,
                image_size,
                channels or 3,
                split_seed,
                eval_transform,
                on_bad_example,
                crop=train_crop or TrainCrop(),
            )
            for source, split_seed in ((train, seed), (test, None))
        ]
        return Dataset(name, splits[0], splits[1], train.classes, _problems(train, test))
    return _read_into_memory(name, train, test, channels, on_bad_example)


def _load_digits() -> Dataset:
    from resflax.data.digits import prepared_digits  # imports TFDS: 0.3 s
    from resflax.data.tfds import open_splits

    try:
        with prepared_digits() as builder:
            sources = open_splits("digits", builder)
            train, test = map(read_all, sources)
    except OSError as e:
        raise UserError(f"cannot write the digits to a temporary folder: {e}") from e
    return Dataset("digits", train, test, sources[0].classes)


def _open_sources(name: str, data_dir: str, on_bad_example: str) -> tuple[Source, Source]:
    if not name.startswith(FOLDER_PREFIX):
        from resflax.data.tfds import open_prepared  # imports TFDS: 0.3 s

        return open_prepared(name, data_dir)
    path = name.removeprefix(FOLDER_PREFIX)
    with folder_errors_as_user_error(path):
        sources = open_folder(user_path(path, "dataset"), on_bad_example)
        test = sources.test or sources.validation
        if test is None:
            raise UserError(f"{path} has only a training split: expected a folder test or val")
        return sources.train, test


@contextlib.contextmanager
def folder_errors_as_user_error(path: str) -> Iterator[None]:
    """Turns errors while listing a folder into a `UserError` of one line."""
    try:
        yield
    except (OSError, RuntimeError) as e:  # no permission, name too long, unknown ~user
        folder, reason = getattr(e, "filename", None) or path, getattr(e, "strerror", None) or e
        raise UserError(f"cannot read the folder {str(folder)!r}: {reason}") from e


def _problems(*sources: Source) -> tuple[str, ...]:
    return tuple(problem for source in sources for problem in source.problems)


def _read_into_memory(
    name: str, train: Source, test: Source, channels: int, on_bad_example: str
) -> Dataset:
    splits = [
        read_all(source, channels=channels, on_bad_example=on_bad_example)
        for source in (train, test)
    ]
    shapes = [split.image_shape for split in splits]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"dataset {name!r} has training images of shape {shapes[0]} and test images of shape"
            f" {shapes[1]}: expected one shape"
        )
    return Dataset(name, splits[0], splits[1], train.classes, _problems(train, test))
