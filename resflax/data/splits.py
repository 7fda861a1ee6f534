"""One split of a dataset by name, as examples on disk, for evaluation."""

from pathlib import Path

from resflax.data.flat_folder import open_flat_folder
from resflax.data.folder_splits import split_folder
from resflax.data.kinds import FOLDER_PREFIX, folder_errors_as_user_error, open_split
from resflax.data.location import DEFAULT_KEYS, FeatureKeys, Location
from resflax.data.roles import Roles, SplitChoice, open_roles
from resflax.data.source import Source, check_on_bad_example
from resflax.data.split_names import role_of_split
from resflax.errors import UserError
from resflax.files import user_path

HELD_OUT = "held-out"
# Words for the examples that a run used for a purpose; other names are those of splits.
ROLES = ("", "train", "validation", "test", HELD_OUT)


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
    splits: SplitChoice | None = None,
    keys: FeatureKeys = DEFAULT_KEYS,
) -> Source:
    """Opens one split of a dataset; the other splits are not read.

    Args:
      name: as in `load_dataset`; besides, "folder:PATH" can be one split, `PATH/CLASS/*.jpg`, or,
        with `labels_file`, a folder of images without class folders.
      split: name of the split, or a TFDS split expression; "" for the test split, or the validation
        split if there is none.
      data_dir: directory of prepared TFDS datasets; see `load_dataset`.
      labels_file: labels of images without class folders; see `open_flat_folder`.
      class_names: class names that the labels in `labels_file` can have.
      num_classes: number of classes that indices in `labels_file` are of; 0 if unknown.
      on_bad_example: "raise", or "skip" to allow classes without images.
      seed: seed of the noise.
      splits: how a run divided its dataset: "", "test", "validation", "held-out" and "train" are
        then the examples that the run used so, the last one without those that it held out.
      keys: names of image and label in the examples of a TFDS or Hugging Face dataset.

    Raises:
      UserError: if the dataset or the split does not exist, or has no examples.
    """
    check_on_bad_example(on_bad_example)
    if labels_file and not name.startswith(FOLDER_PREFIX):
        raise UserError(f"a labels file is given for {name!r}: expected a dataset folder:PATH")
    if labels_file:
        path = name.removeprefix(FOLDER_PREFIX)
        with folder_errors_as_user_error(path):
            folder, _ = split_folder(user_path(path, "dataset"), split)
            return open_flat_folder(folder, Path(labels_file), class_names, num_classes)
    location = Location(name, data_dir, on_bad_example, seed, keys)
    if splits is not None and split in ROLES:
        return _open_role(open_roles(location, splits), split)
    return open_split(location, split)


def _open_role(roles: Roles, split: str) -> Source:
    """Returns the examples that a run used for a purpose, one of `ROLES`."""
    role = roles.held_out if split == HELD_OUT else split or "test"
    if role == "validation" and not roles.validation and role_of_split(roles.names.test) == role:
        role = "test"  # the only split for evaluation is the test split, whatever its name
    source: Source | None = getattr(roles, role) if role else None
    if source is None:
        splits = ["train", *(["validation"] if roles.validation else []), "test"]
        raise UserError(f"the run has no {split} split: expected one of {', '.join(splits)}")
    return source
