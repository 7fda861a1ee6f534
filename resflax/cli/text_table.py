"""Tables as text."""

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table with its first column aligned left and the others right.

    >>> print(text_table(["run", "loss"], [["a", "0.5"], ["long", "10"]]))
    run   loss
    a      0.5
    long    10
    """
    lines = [header, *rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]

    def align(line: Sequence[str]) -> str:
        first, *others = line
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        return "  ".join([first.ljust(widths[0]), *cells]).rstrip()

    return "\n".join(map(align, lines))


def number(value: float | None, form: str = ".4f") -> str:
    """Returns a number as text; "-" for None."""
    return "-" if value is None else format(value, form)
