"""Any image-classification set by name: embedded, noise, prepared by TFDS, or a folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resflax.data.digits import Digits, prepared
from resflax.data.fake import fake, is_fake
from resflax.data.folder import open_folder
from resflax.data.in_memory import InMemorySplit, read_all
from resflax.data.source import Source, check_policy
from resflax.data.streaming import StreamingSplit
from resflax.data.tfds import open_prepared, splits_of
from resflax.errors import UserError

FOLDER = "folder:"
Split = InMemorySplit | StreamingSplit


@dataclass(frozen=True)
class Dataset:
    """A training and a test split of the same classes and image shape.

    `faults` are what is wrong with the set as a whole and was borne.
    """

    name: str
    train: Any  # an `InMemorySplit` or a `StreamingSplit`
    test: Any
    num_classes: int
    faults: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        shape: tuple[int, int, int] = self.train.image_shape
        return shape

    def normalized_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Dataset":
        """The same set, whose moments are these; () for one that stays.

        Raises:
          UserError: if there is not a number for each channel.
        """
        channels = self.image_shape[2]
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (0, channels):
                raise UserError(
                    f"{name} is {tuple(values)}: expected a number for each of the {channels}"
                    f" channels of {self.name!r}"
                )
        if not mean and not std:
            return self
        own = self.train.mean_std() if not (mean and std) else ((), ())
        fixed = (tuple(mean) or own[0], tuple(std) or own[1])
        return replace(self, train=replace(self.train, fixed=fixed))

    @property
    def skipped(self) -> list[str]:
        """What was left out so far, and why."""
        told = list(self.faults)
        for split in (self.train, self.test):
            found = split.skipped
            told += found.values() if isinstance(found, dict) else found
        return told


def load_dataset(
    name: str,
    data_dir: str = "",
    *,
    image_size: int = 0,
    channels: int = 0,
    on_bad_example: str = "raise",
    seed: int = 0,
) -> Dataset:
    """Opens a set by name; "digits" is embedded and needs no preparing.

    Args:
      name: "digits"; as TFDS spells it: "fashion_mnist", "emnist/letters", "mnist:3.*.*";
        "folder:PATH" for `PATH/train/CLASS/*.jpg` and `PATH/test/CLASS/*.jpg` (or png); or noise
        of a size, "fake:224x224x3:1000:1024" (see `resflax.data.fake`).
      data_dir: where prepared sets lie; "" is TFDS's own choice (`$TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`).
      image_size: 0 to read a set of images of one size into memory; else images of any size are
        read as they are needed and cut to squares of so many pixels: to train on as Inception does,
        to be evaluated on at the centre.
      channels: 1 or 3 to convert all images to grey or colour; 0 to take them as they are, all
        alike (with an `image_size`: 3).
      on_bad_example: "raise", or "skip" to leave out what cannot be used.
      seed: of the random cuts, and of the noise.

    Raises:
      UserError: if there is no such set, it is not prepared, it is not of images with one label
        each, or an example cannot be used.
    """
    check_policy(on_bad_example)
    if channels not in (0, 1, 3):
        raise UserError(f"channels is {channels}: expected 0, 1 or 3")
    if name == Digits.name:
        try:
            with prepared() as builder:
                train, test = map(read_all, splits_of(name, builder))
        except OSError as e:
            raise UserError(f"cannot write the digits to a temporary folder: {e}") from e
        return Dataset(name, train, test, 10)
    if is_fake(name):
        if image_size or channels:
            raise UserError(
                f"dataset {name!r} has the size and channels of its name: expected image_size 0"
                " and channels 0"
            )
        return Dataset(name, *fake(name, seed))
    sources: tuple[Source, Source]
    if name.startswith(FOLDER):
        sources = _folder(name.removeprefix(FOLDER), on_bad_example)
    else:
        sources = open_prepared(name, data_dir)
    return _opened(name, sources[0], sources[1], image_size, channels, on_bad_example, seed)


def _folder(path: str, policy: str) -> tuple[Source, Source]:
    try:
        return open_folder(Path(path).expanduser(), policy)
    except (OSError, RuntimeError) as e:  # no leave to look, too long a name, nobody's home
        place, reason = getattr(e, "filename", None) or path, getattr(e, "strerror", None) or e
        raise UserError(f"cannot look into the folder {str(place)!r}: {reason}") from e


def _opened(
    name: str, train: Source, test: Source, size: int, channels: int, policy: str, seed: int
) -> Dataset:
    classes = len(train.classes)
    faults = tuple(fault for source in (train, test) for fault in getattr(source, "faults", ()))
    if size:
        depth = channels or 3
        to_train = StreamingSplit(train, size, depth, seed, policy)
        return Dataset(
            name, to_train, StreamingSplit(test, size, depth, None, policy), classes, faults
        )
    splits = [read_all(source, channels=channels, policy=policy) for source in (train, test)]
    if splits[0].image_shape != splits[1].image_shape:
        raise UserError(
            f"dataset {name!r} has images of {splits[0].image_shape} to train on and of"
            f" {splits[1].image_shape} to test on: expected one shape"
        )
    return Dataset(name, splits[0], splits[1], classes, faults)
