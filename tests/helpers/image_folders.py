"""Small image folders and prepared TFDS datasets for tests."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def encode_png(image):
    """Encodes a uint8 or uint16 array as PNG."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png")
    return out.getvalue()


def constant_image(value, height=6, width=5):
    return np.full((height, width, 3), value, np.uint8)


def write_folder(root, files):
    """Writes files, given as {path: bytes or image}, and returns the dataset name of the folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else encode_png(content))
    return f"folder:{root}"


class Stripes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder with unusual feature and split names; subclasses override its attributes."""

    VERSION = tfds.core.Version("1.0.0")
    shape, features, counts = (None, None, 3), ("picture", "kind"), {"train": 5, "validation": 3}
    size = staticmethod(lambda i: (4, 6))

    def _info(self):
        image, label = self.features
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    image: tfds.features.Image(shape=self.shape),
                    label: tfds.features.ClassLabel(names=["a", "b", "c"]),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(n) for split, n in self.counts.items()}

    def _generate_examples(self, n):
        for i in range(n):
            image, label = self.features
            pixels = np.full((*type(self).size(i), 3), i, np.uint8)
            yield i, {image: encode_png(pixels), label: i % 3}


def stripes_builder(data_dir, file_format="array_record", **attributes):
    """Returns a `Stripes` builder with some class attributes replaced."""
    cls = type("Stripes", (Stripes,), attributes, skip_registration=True)
    return cls(data_dir=data_dir, file_format=file_format)


def prepare_stripes(data_dir, **attributes):
    """Prepares a `Stripes` dataset and returns its `data_dir`."""
    stripes_builder(data_dir, **attributes).download_and_prepare()
    return str(data_dir)
