"""The included dataset: 1,797 handwritten digits, as a builder of TensorFlow Datasets.

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak (1998), UCI Machine Learning
Repository, doi:10.24432/C50P49, license CC BY 4.0. `digits.npz` is the test part of the archive
(scikit-learn's `load_digits`): 8x8 images with gray values from 0 to 16.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

Example = tuple[int, dict[str, Any]]
ARCHIVE = Path(__file__).with_name("digits.npz")
TEST_EXAMPLES = 360


class _LocalInfo(tfds.core.DatasetInfo):
    """Dataset info that does not look for a published copy on Google Cloud Storage."""

    def initialize_from_bucket(self) -> None:
        pass


class Digits(tfds.core.GeneratorBasedBuilder):
    """UCI handwritten digits: 1,437 training and 360 test images of shape (8, 8, 1), uint8."""

    name = "digits"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "A fixed random split of the 1,797 images."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalInfo(
            builder=self,
            description="Handwritten digits of 8x8 pixels.",
            homepage="https://archive.ics.uci.edu/dataset/80",
            license="CC BY 4.0",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[Example]]:
        # The archive is sorted by writer; a random split has every writer in both parts.
        order = np.random.RandomState(0).permutation(1797)
        return {
            "train": self._generate_examples(order[TEST_EXAMPLES:]),
            "test": self._generate_examples(order[:TEST_EXAMPLES]),
        }

    def _generate_examples(self, indices: np.ndarray) -> Iterator[Example]:
        with np.load(ARCHIVE) as archive:
            images, labels = archive["image"], archive["label"]
        for i in indices.tolist():
            # Encoded here, because TFDS would encode an array with TensorFlow.
            png = io.BytesIO()
            gray = np.rint(images[i] * (255 / 16)).astype(np.uint8)
            Image.fromarray(gray).save(png, "png")
            yield i, {"image": png.getvalue(), "label": int(labels[i])}


@contextlib.contextmanager
def prepared_digits() -> Iterator[Digits]:
    """Prepares the dataset in a temporary folder (0.2 s), which is deleted on exit.

    Raises:
      OSError: if the temporary folder cannot be written.
    """
    output = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="resflax-digits-") as folder:
        builder = Digits(data_dir=folder, file_format="array_record")
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            config = tfds.download.DownloadConfig(try_download_gcs=False)
            builder.download_and_prepare(download_config=config)
        yield builder
