"""File formats of images: the one list of what training, evaluation and prediction take."""

import functools
import os

from PIL import Image

# Formats that Pillow registers but reads only with other software, and video.
UNREADABLE_FORMATS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Returns the suffixes, in lower case, of the image files that Pillow reads.

    >>> {".jpg", ".png", ".webp", ".tiff"} <= image_suffixes()
    True
    """
    Image.init()
    return frozenset(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in UNREADABLE_FORMATS
    )


def is_image(path: str | os.PathLike[str]) -> bool:
    """Returns whether a file has the suffix of an image, in any case.

    >>> is_image("photos/cat.JPG"), is_image("photos/cat.mp4")
    (True, False)
    """
    return os.path.splitext(path)[1].lower() in image_suffixes()
