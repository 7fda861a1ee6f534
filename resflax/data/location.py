"""Where a dataset is, and how it is opened."""

from typing import Any, NamedTuple


class FeatureKeys(NamedTuple):
    """Names of the image and the label in the examples of a dataset; "" chooses."""

    image: str = ""
    label: str = ""

    @classmethod
    def from_config(cls, data: Any, image: str = "", label: str = "") -> "FeatureKeys":
        """Returns the given names, and those of `config.data`, or "data" of a config.json."""
        return cls(image or data.get("image_key", ""), label or data.get("label_key", ""))


DEFAULT_KEYS = FeatureKeys()


class Location(NamedTuple):
    """A dataset by its name, with what is needed to open it.

    Attributes:
      name: name of the dataset, such as "folder:photos".
      data_dir: directory of prepared TFDS datasets; "" for that of TFDS.
      on_bad_example: "raise" or "skip".
      seed: seed of noise.
      keys: names of image and label.
    """

    name: str
    data_dir: str = ""
    on_bad_example: str = "raise"
    seed: int = 0
    keys: FeatureKeys = DEFAULT_KEYS

    @property
    def path(self) -> str:
        """The name without its prefix.

        >>> Location("folder:photos").path
        'photos'
        """
        return self.name.partition(":")[2]
