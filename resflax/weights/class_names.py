"""Names of classes, also of those without names."""

from collections.abc import Sequence


def class_names(names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """Returns the names of all classes of a model: "class 0", "class 1", ... if they are unknown.

    >>> class_names((), 2), class_names(("cat", "dog"), 2)
    (('class 0', 'class 1'), ('cat', 'dog'))
    """
    return tuple(names) or tuple(f"class {index}" for index in range(num_classes))
