"""Keys of the loss that have no effect on what the others choose, as a table."""

from resflax.data.augment.splits import make_own_augment
from resflax.nn.patterns import parse_patterns
from resflax.train.config import augment_settings
from resflax.train.config_keys import DISTILLATION, LOSS
from resflax.train.losses import LOSSES, OPTION_KEYS, takes_option
from resflax.train.rule import Row


def _option_row(key: str) -> Row:
    users = [name for name in LOSSES if takes_option(name, key)]
    return Row(
        (key,),
        lambda c: c.loss in LOSSES and c.loss not in users,
        f"config.loss={{c.loss!r}} does not take it: leave it out, or use {' or '.join(users)}",
    )


LOSS_ROWS: tuple[Row, ...] = (
    *map(_option_row, OPTION_KEYS),
    Row(
        ("jsd_weight",),
        lambda c: c.data.aug_splits == 1,
        "config.data.aug_splits is 1: leave it out, or use 3 copies",
    ),
    Row(
        ("data.aug_splits",),
        lambda c: make_own_augment(augment_settings(c)) is None,
        "no augmentation differs between copies, which share crops and flips: leave it out, or use"
        " config.data.auto_augment",
    ),
    Row(
        tuple(key for key in DISTILLATION if key != "distill.teacher"),
        lambda c: not c.distill.teacher,
        "config.distill.teacher is '': leave it out, or give the weights of the teacher",
    ),
    Row(
        ("distill.feature_weight",),
        lambda c: not parse_patterns(c.distill.features),
        "config.distill.features is {c.distill.features!r}: leave it out, or name feature maps",
    ),
    Row(
        ("distill.temperature",),
        lambda c: bool(c.distill.teacher) and c.distill.weight == 0,
        "config.distill.weight is 0, which leaves the teacher's logits out: leave one of them out",
    ),
    Row(
        tuple(LOSS),
        lambda c: bool(c.distill.teacher) and c.distill.weight == 1,
        "config.distill.weight is 1, which leaves the labels out: leave one of them out",
    ),
)
