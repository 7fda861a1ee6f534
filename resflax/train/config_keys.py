"""The keys of the config, as a table: default, meaning and group of each."""

import dataclasses
import re
import types
import typing
from typing import Any, NamedTuple

from resflax.nn import Spec
from resflax.nn.field_table import FIELDS


class Key(NamedTuple):
    """A key of the config.

    Attributes:
      default: value before those of a recipe and of the command line; None if the key is not set.
      meaning: what it sets, in one sentence without a period.
      kind: type of the values, if the default is None.
    """

    default: Any
    meaning: str
    kind: type | None = None


# Fields of a spec that no key sets: the number of classes is that of the dataset.
NOT_KEYS = ("num_classes", "pruned")

MODEL = {
    "model": Key(
        "cifar_resnet20", "name of the network (see `resflax list`); '': the pretrained one"
    ),
    "pretrained": Key("", "initial weights: a workdir, folder, file, or name of the Hub"),
    "reset_head": Key(False, "use a new head even if the pretrained one has as many classes"),
    "whiten_stem": Key(
        False,
        "start with a first convolution that whitens patches of the training images, and freeze it",
    ),
    "freeze": Key(None, "parameters that are not trained", object),
    "freeze_batch_norm": Key(False, "freeze scales, biases and statistics of all batch norms"),
    "batch_norm": Key("global", "examples that the statistics of batch norm are computed from"),
    "ghost_batch_size": Key(32, "examples per group with batch_norm=ghost"),
    "dtype": Key("float32", "dtype of the computation; parameters stay float32"),
    "scan": Key(None, "compile the equal blocks of a stage once; unset: the model decides", bool),
    "remat": Key(False, "store only the inputs of blocks for the backward pass, to save memory"),
    "seed": Key(0, "seed of initial parameters, order of examples, augmentation and dropout"),
}
DATA = {
    "dataset": Key("digits", "the images and their classes"),
    "data.data_dir": Key("", "directory of prepared TensorFlow Datasets; '': the default of TFDS"),
    "data.image_size": Key(
        0,
        "side in pixels that images are resized to as they are read; 0: images of one size, kept in"
        " memory; -1: the input size of the pretrained model",
    ),
    "data.size_schedule": Key(
        (),
        "rows of a first epoch, the side of training images from it on and, optionally, the batch"
        " size: sizes that change during a run",
    ),
    "data.channels": Key(0, "convert all images to gray (1) or RGB (3); 0: RGB if one has color"),
    "data.on_bad_example": Key("raise", "what to do with examples that cannot be used"),
    "data.train_split": Key(
        "", "training split: a TFDS split such as train[:90%], or the name of a folder; '': chosen"
    ),
    "data.validation_split": Key("", "split that chooses the best checkpoint; '': chosen, if any"),
    "data.test_split": Key("", "split that the results are of; '': chosen"),
    "data.validation": Key(
        0.0,
        "share of each class of the training split that is held out for validation; 0: none, or 0.1"
        " for testing if there is only a training split",
    ),
    "data.validation_seed": Key(0, "which examples are held out, whatever the seed of the run"),
    "data.image_key": Key("", "name of the image in the examples of TFDS and hf:; '': chosen"),
    "data.label_key": Key("", "name of the label in the examples of TFDS and hf:; '': chosen"),
    "data.placement": Key("auto", "where a dataset in memory is kept; auto: on devices if small"),
    "data.num_workers": Key(0, "processes that decode images as they are read; 0: threads"),
    "data.mean": Key(
        (), "mean of each channel, 0 to 1; (): that of the pretrained weights, or measured"
    ),
    "data.std": Key((), "standard deviation of each channel, 0 to 1; (): as for data.mean"),
}
AUGMENTATION = {
    "data.pad_crop": Key(0, "pixels of padding before a random crop of the image's size"),
    "data.train_crop": Key(
        "auto",
        "how training images are cropped: inception, a random crop that is resized; resize, the"
        " resize of evaluation and a random crop; squash, a resize of both sides; none, the resize"
        " and center crop of evaluation; auto: inception with data.image_size, none in memory",
    ),
    "data.train_interpolation": Key(
        "",
        "how training crops are resized; random: bilinear or bicubic; '': bilinear for inception,"
        " or as in evaluation",
    ),
    "data.crop_scale": Key(
        (0.08, 1.0), "smallest and largest area of an Inception crop, as shares of the image's area"
    ),
    "data.crop_ratio": Key(
        (3 / 4, 4 / 3), "smallest and largest ratio of width to height of an Inception crop"
    ),
    "data.flip": Key(False, "mirror images at random"),
    "data.alternating_flip": Key(False, "mirror each image in every other epoch"),
    "data.rand_augment": Key((), "RandAugment: number of operations and magnitude"),
    "data.auto_augment": Key(
        "",
        "augmentation policy: rand-m9-mstd0.5-inc1 or augmix-m3-w3 as in timm, trivial, 3a or"
        " autoaugment",
    ),
    "data.color_jitter": Key((), "ranges of random brightness, contrast, saturation and hue"),
    "data.grayscale": Key(0.0, "probability of a gray image"),
    "data.gaussian_blur": Key(0.0, "probability of a blur of 0.1 to 2 pixels"),
    "data.solarize": Key(0.0, "probability of inverting all values of at least 128"),
    "data.random_erasing": Key(0.0, "probability of erasing a random rectangle"),
    "data.cutout": Key(0, "side in pixels of a square that is erased at random"),
    "data.shift": Key(0, "largest circular shift along each axis, in positions, of arrays"),
    "data.noise": Key(0.0, "Gaussian noise, as a share of the standard deviation of each channel"),
    "data.mask": Key(0, "size along each axis of a random box that is replaced by the mean"),
    "data.mixup": Key(0.0, "alpha of mixup; 0: none"),
    "data.cutmix": Key(0.0, "alpha of CutMix; 0: none"),
    "data.mixup_mode": Key(
        "pair",
        "which examples are mixed by the same random numbers: those of a pair, elem or batch",
    ),
    "data.mixup_prob": Key(1.0, "probability of mixup or CutMix"),
    "data.mixup_switch_prob": Key(0.5, "probability of CutMix, with mixup too"),
    "data.mixup_off_epoch": Key(0, "epoch from which nothing is mixed; 0: none"),
    "data.repeats": Key(
        1, "copies of an example in a batch, differently augmented; an epoch keeps its steps"
    ),
    "data.aug_splits": Key(
        1,
        "copies of each example of a batch in the step, the first one only cropped and flipped,"
        " that learn to agree by the Jensen-Shannon loss of AugMix; 1: no such loss",
    ),
}
OPTIMIZER = {
    "optimizer": Key("sgd", "the optimizer"),
    "learning_rate": Key(0.1, "largest learning rate of the schedule"),
    "learning_rate_scaling": Key(
        "none", "how learning rates grow with batch_size over base_batch_size"
    ),
    "base_batch_size": Key(256, "batch size that learning rates are given for, if they are scaled"),
    "learning_rate_factors": Key(
        (), "pairs of a pattern of parameter names and the factor of their learning rate"
    ),
    "head_learning_rate": Key(0.0, "largest learning rate of the head; 0: learning_rate"),
    "layer_decay": Key(1.0, "factor of the learning rate per block, from the head down"),
    "momentum": Key(
        0.9,
        "momentum; of schedule_free_sgd, the weight of the average in the parameters at which"
        " gradients are computed",
    ),
    "nesterov": Key(True, "Nesterov momentum"),
    "betas": Key((), "decay rates of the optimizer's moments; (): its own"),
    "eps": Key(0.0, "what the optimizer adds to denominators; 0: its own"),
    "trust_coefficient": Key(0.001, "trust coefficient of lars"),
    "grad_clip": Key(0.0, "limit of the gradient, see grad_clip_mode; 0: no clipping"),
    "grad_clip_mode": Key(
        "norm",
        "what grad_clip limits: the global norm, each value, or with agc the norm of each"
        " unit's gradient over that of its weights",
    ),
    "sam_rho": Key(
        0.0,
        "distance from the parameters at which sharpness-aware minimization computes the gradient;"
        " 0: none",
    ),
    "batch_size": Key(128, "examples per step, over all devices"),
    "steps_per_call": Key(
        1,
        "most steps of one call of the compiled step, with a dataset on the devices; a call ends at"
        " evaluations and checkpoints, those of more than 64 steps after about five seconds, and"
        " signals stop the run at its end",
    ),
    "grad_accum_steps": Key(1, "micro-batches that a batch is split into, to save memory"),
    "on_nonfinite": Key("stop", "after a loss or gradient that is not finite; skip: no update"),
    "max_consecutive_nonfinite": Key(10, "consecutive skipped updates that stop the run"),
}
SCHEDULE = {
    "epochs": Key(10, "passes over the training split; 0: only evaluate the pretrained weights"),
    "max_steps": Key(
        0,
        "step after which a run ends, with the schedule of its epochs; 0: at the end of the epochs",
    ),
    "schedule": Key("cosine", "learning rate as a function of the step"),
    "warmup_epochs": Key(
        0.0, "epochs of linear warm-up; one-cycle: epoch of the peak, 0 for 0.3 of the run"
    ),
    "warmup_learning_rate": Key(
        0.0, "learning rate of the first step of the warm-up; 0: the peak over the steps of it"
    ),
    "min_learning_rate": Key(
        0.0,
        "learning rate at the end of the cosine, cosine_cycles and polynomial schedules; the lowest"
        " one of plateau",
    ),
    "decay_epochs": Key((), "epochs at which schedule=step multiplies the learning rate"),
    "decay_rate": Key(0.1, "factor of schedule=step and schedule=plateau"),
    "plateau_patience": Key(
        10, "evaluations without improvement that schedule=plateau accepts before it multiplies"
    ),
    "plateau_threshold": Key(
        1e-4, "relative increase of the accuracy that schedule=plateau takes as an improvement"
    ),
    "polynomial_power": Key(1.0, "exponent of schedule=polynomial"),
    "schedule_cycles": Key(
        1, "cycles of schedule=cosine_cycles; the checkpoint at the end of each is kept"
    ),
}
LOSS = {
    "loss": Key("cross_entropy", "the loss of a step; evaluation reports the cross-entropy"),
    "label_smoothing": Key(0.0, "share of the target that is distributed over all classes"),
    "loss_sum_classes": Key(False, "bce and focal: the sum over the classes, not the mean"),
    "bce_target_threshold": Key(
        None, "targets of bce that are larger become 1, the others 0; unset: kept", float
    ),
    "focal_alpha": Key(0.25, "focal: factor of targets of 1, 1 minus it of 0; -1: none"),
    "focal_gamma": Key(2.0, "focal: exponent of the probability of another class"),
    "jsd_weight": Key(12.0, "weight of the Jensen-Shannon divergence of data.aug_splits copies"),
}
DISTILLATION = {
    "distill.teacher": Key(
        "", "weights of a trained network whose outputs are learned too, as for pretrained"
    ),
    "distill.weight": Key(
        0.5, "share of the teacher's logits in the loss; 1: without the labels; 0: features only"
    ),
    "distill.temperature": Key(1.0, "divides the logits of both networks"),
    "distill.features": Key(
        None, "feature maps of the teacher that are learned too, such as stage3,pooled", object
    ),
    "distill.feature_weight": Key(1.0, "factor of the mean squared error of these maps"),
}
REGULARIZATION = {
    "weight_decay": Key(1e-4, "weight decay; for sgd the L2 penalty of the paper"),
    "weight_decay_factors": Key(
        (), "pairs of a pattern of parameter names and the factor of their weight decay"
    ),
    "decay_mask": Key("kernels", "parameters that weight decay and trust ratios apply to"),
    "ema_decay": Key(0.0, "decay of averaged weights, which are then evaluated; 0: none"),
    "ema_every_steps": Key(1, "steps per update of the averaged weights"),
    "ema_start_step": Key(0, "step before which the averaged weights are the weights themselves"),
    "ema_warmup": Key("tensorflow", "how the decay of averaged weights grows at first"),
}
EVALUATION = {
    "data.eval_size": Key(
        0, "side in pixels of evaluated images; 0: the pretrained model's, or data.image_size"
    ),
    "data.crop_pct": Key(
        0.0,
        "side of the evaluated center crop over that of the resized image; 0: the pretrained"
        " model's, or 1 with crop_mode=squash, or 0.875",
    ),
    "data.crop_mode": Key(
        "",
        "how evaluated images become squares: center, a resize of the shorter side and a center"
        " crop, or squash, a resize of both sides; '': squash with train_crop=squash, or as for the"
        " pretrained model, or center",
    ),
    "data.interpolation": Key(
        "", "how evaluated images are resized; '': as for the pretrained model, or bilinear"
    ),
    "eval_tta": Key(
        "none",
        "views of a test image whose probabilities are averaged: flip, the image and its mirror"
        " image; flip_shift, also shifted by a pixel in two directions",
    ),
    "precise_bn_batches": Key(
        0, "batches from which statistics of batch norm are computed before evaluation; 0: none"
    ),
    "eval_every_epochs": Key(1, "epochs between evaluations"),
    "checkpoint_every_steps": Key(0, "steps between checkpoints; 0: none by steps"),
    "checkpoint_every_minutes": Key(10.0, "minutes between checkpoints; 0: none by time"),
    "checkpoint_max_to_keep": Key(3, "latest checkpoints that are kept, besides the best one"),
}
LOGGING = {
    "eval_sets": Key(
        None, "further datasets that are evaluated: NAME=DATASET,NAME=DATASET", object
    ),
    "log_every_steps": Key(10, "steps per record in metrics.jsonl"),
    "log_to": Key(None, "where records are written besides metrics.jsonl, such as csv", object),
    "log_histograms_every_steps": Key(
        0, "steps between histograms of parameters and gradients; 0: none"
    ),
    "profile_steps": Key((), "first and last step of a profile in WORKDIR/profile; (): none"),
}
ENSEMBLES = {
    "ensemble.size": Key(1, "networks that are trained as one program"),
    "ensemble.seeds": Key((), "seed of each member; (): seed, seed + 1 and so on"),
    "ensemble.share_init": Key(False, "start all members from the first one's parameters"),
    "ensemble.share_order": Key(False, "give all members the first one's order of examples"),
    "ensemble.share_augment": Key(
        False, "give all members the first one's random augmentation and dropout"
    ),
    "ensemble.learning_rate": Key((), "learning_rate of each member; (): the same"),
    "ensemble.weight_decay": Key((), "weight_decay of each member; (): the same"),
    "ensemble.label_smoothing": Key((), "label_smoothing of each member; (): the same"),
    "ensemble.mixup": Key((), "data.mixup of each member; (): the same"),
    "ensemble.drop_path": Key((), "spec.drop_path of each member; (): the same"),
    "ensemble.member_devices": Key(0, "devices that members are divided over; 0 chooses"),
    "ensemble.method": Key("auto", "how a device runs its members: together, or one by one"),
    "ensemble.on_diverged": Key(
        "drop",
        "for a member that is not finite: leave it out, keep its last finite state, or end the run",
    ),
}
PARALLEL = {
    "parallel": Key("pmap", "how a step runs on several devices"),
    "mesh.fsdp": Key(1, "devices that share one copy of the state, with parallel=mesh"),
}


def _spec_keys() -> dict[str, Key]:
    """Returns the keys that set fields of the model's spec, with the texts of its docstring."""
    meanings = _documented_attributes(Spec.__doc__ or "")
    return {
        f"spec.{field.name}": Key(
            None,
            meanings[field.name],
            object if field.name in FIELDS else _flag_type(field.type),  # names and functions
        )
        for field in dataclasses.fields(Spec)
        if field.name not in NOT_KEYS
    }


def _documented_attributes(doc: str) -> dict[str, str]:
    r"""Returns the text of each row of a docstring's list of attributes.

    >>> _documented_attributes("A box.\n\nAttributes:\n  width: in\n    mm.\n  depth: too.\n\n")
    {'width': 'in mm', 'depth': 'too'}
    """
    section = doc.partition("Attributes:\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^ +(\w+): ((?:.|\n)*?)(?=\n +\w+: |\Z)", section, re.MULTILINE)
    return {name: " ".join(text.split()).removesuffix(".") for name, text in rows}


def _flag_type(annotation: Any) -> type:
    """Returns the type of a field's flag: for a union, its first member."""
    if isinstance(annotation, types.UnionType):
        annotation = typing.get_args(annotation)[0]
    return typing.get_origin(annotation) or annotation


# All keys, by group.
GROUPS: dict[str, dict[str, Key]] = {
    "model": MODEL,
    "data": DATA,
    "augmentation": AUGMENTATION,
    "optimizer": OPTIMIZER,
    "schedule": SCHEDULE,
    "loss": LOSS,
    "distillation": DISTILLATION,
    "regularization": REGULARIZATION,
    "evaluation and checkpoints": EVALUATION,
    "logging": LOGGING,
    "ensembles": ENSEMBLES,
    "parallel": PARALLEL,
    "architecture, instead of that of the named model": _spec_keys(),
}
KEYS: dict[str, Key] = {key: row for rows in GROUPS.values() for key, row in rows.items()}
