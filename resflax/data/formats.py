"""File formats of images: the one list of what training, evaluation and prediction take."""

import functools

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
