"""Keys of the loss that have no effect on what the others choose, as a table."""

from resflax.train.losses import LOSSES, OPTION_KEYS, takes_option
from resflax.train.rule import Row


def _option_row(key: str) -> Row:
    users = [name for name in LOSSES if takes_option(name, key)]
    return Row(
        (key,),
        lambda c: c.loss in LOSSES and c.loss not in users,
        f"config.loss={{c.loss!r}} does not take it: leave it out, or use {' or '.join(users)}",
    )


LOSS_ROWS: tuple[Row, ...] = tuple(map(_option_row, OPTION_KEYS))
