"""The class names of ImageNet-1k, for models with 1,000 classes whose config has no names."""

import importlib.resources
from functools import cache


@cache
def imagenet_classes() -> tuple[str, ...]:
    """Returns the 1,000 class names in the order of the labels.

    The table `imagenet_classes.txt` is torchvision's; it has the license.

    >>> imagenet_classes()[0], imagenet_classes()[281], len(imagenet_classes())
    ('tench', 'tabby', 1000)
    """
    table = importlib.resources.files("resflax.weights") / "imagenet_classes.txt"
    lines = table.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))
