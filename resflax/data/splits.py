"""One split of a dataset by name, as examples on disk, for evaluation."""

from typing import Any

from resflax.data.array_source import ArraySource
from resflax.data.datasets import FOLDER_PREFIX, folder_errors_as_user_error
from resflax.data.fake import is_fake, make_fake_split
from resflax.data.flat_folder import open_flat_folder
from resflax.data.folder import open_folder_split
from resflax.data.folder_splits import split_folder
from resflax.data.in_memory import read_all
from resflax.data.source import Source, check_on_bad_example
from resflax.errors import UserError
from resflax.files import user_path


def load_split(
    name: str,
    split: str = "",
    *,
    data_dir: str = "",
    labels_file: str = "",
    class_names: tuple[str, ...] = (),
    num_classes: int = 0,
    on_bad_example: str = "raise",
    seed: int = 0,
) -> Source:
    """Opens one split of a dataset; the other splits are not read.

    Args:
      name: as in `load_dataset`; besides, "folder:PATH" can be one split, `PATH/CLASS/*.jpg`, or,
        with `labels_file`, a folder of images without class folders.
      split: name of the split; "" for the test split, or the validation split if there is none.
      data_dir: directory of prepared TFDS datasets; see `load_dataset`.
      labels_file: labels of images without class folders; see `open_flat_folder`.
      class_names: class names that the labels in `labels_file` can have.
      num_classes: number of classes that indices in `labels_file` are of; 0 if unknown.
      on_bad_example: "raise", or "skip" to allow classes without images.
      seed: seed of the noise.

    Raises:
      UserError: if the dataset or the split does not exist, or has no examples.
    """
    check_on_bad_example(on_bad_example)
    if labels_file and not name.startswith(FOLDER_PREFIX):
        raise UserError(f"a labels file is given for {name!r}: expected a dataset folder:PATH")
    if name == "digits":
        return _digits_source(split)
    if is_fake(name):
        noise, classes = make_fake_split(name, seed, split or "test")
        return ArraySource(f"{name}, {split or 'test'}", noise, classes)
    if not name.startswith(FOLDER_PREFIX):
        from resflax.data.tfds import open_prepared_split  # imports TFDS: 0.3 s

        return open_prepared_split(name, data_dir, split)
    path = name.removeprefix(FOLDER_PREFIX)
    with folder_errors_as_user_error(path):
        root = user_path(path, "dataset")
        if labels_file:
            folder, _ = split_folder(root, split)
            labels = user_path(labels_file, "labels_file")
            return open_flat_folder(folder, labels, class_names, num_classes)
        return open_folder_split(root, split, on_bad_example)


def _digits_source(split: str) -> ArraySource:
    from resflax.data.digits import prepared_digits  # imports TFDS: 0.3 s
    from resflax.data.tfds import open_builder_split

    try:
        with prepared_digits() as builder:
            source: Any = open_builder_split("digits", builder, split)
            return ArraySource(source.name, read_all(source), source.classes)
    except OSError as e:
        raise UserError(f"cannot write the digits to a temporary folder: {e}") from e
