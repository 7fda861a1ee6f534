"""The config of a run: every key and its default, and what it builds."""

import dataclasses
import json
import types
import typing
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from resflax.data.augment import Augment, Mix, make_augment, make_mix
from resflax.nn import ResNet, Spec
from resflax.zoo import create_model

# Prefixes of keys that do not change the result of a run: they may differ when it is resumed.
RESUMABLE_KEYS = (
    "parallel",
    "mesh.",
    "data.data_dir",
    "data.num_workers",
    "data.placement",
    "checkpoint_",
    "ensemble.member_devices",
    "ensemble.method",
)
# Keys that can be raised to continue a finished run.
INCREASABLE_KEYS = ("epochs",)


def default_config() -> ConfigDict:
    """Returns all keys with their defaults; a recipe in `configs/` changes some of them."""
    config = ConfigDict(
        {
            "model": "cifar_resnet20",  # a name of `list_models()`; "": that of the weights
            "pretrained": "",  # initial weights: a workdir, folder, file, or name of the Hub
            "reset_head": False,  # a new head even if the pretrained one has as many classes
            # Parameters to freeze: patterns such as "stem*,stage[12]*"; see resflax.train.freeze.
            "freeze": placeholder(object),
            "freeze_batch_norm": False,  # freeze scales, biases and statistics of all batch norms
            "batch_norm": "global",  # statistics: or "per_device", "ghost", "frozen"
            "ghost_batch_size": 32,  # examples per group of "ghost"
            "dtype": "float32",  # compute dtype; parameters stay float32
            "scan": placeholder(bool),  # compile a stage's blocks once; unset: the model's default
            "remat": False,  # store only the blocks' inputs for the backward pass
            "dataset": "digits",  # "digits", "folder:PATH", a name of TensorFlow Datasets
            "seed": 0,
            "epochs": 10,  # 0 evaluates pretrained weights
            "batch_size": 128,  # over all devices
            "grad_accum_steps": 1,  # number of micro-batches per batch
            "optimizer": "sgd",  # or "adamw", "lars", "lamb"
            "learning_rate": 0.1,  # peak of the schedule
            "head_learning_rate": 0.0,  # peak for the head; 0 for learning_rate
            "layer_decay": 1.0,  # factor of the learning rate per block, from the head down
            # Or "constant", "step", "cosine_cycles", "polynomial", "{cosine,linear}_onecycle".
            "schedule": "cosine",
            "warmup_epochs": 0.0,  # for one-cycle: the epoch of the peak; 0 for 0.3 of the run
            "decay_epochs": (),  # epochs at which the "step" schedule decays
            "decay_rate": 0.1,  # factor of the "step" schedule
            "polynomial_power": 1.0,  # exponent of the "polynomial" schedule
            "schedule_cycles": 1,  # of "cosine_cycles"; the checkpoint at each one's end is kept
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 1e-4,
            "decay_mask": "kernels",  # or "all"; also applies to trust ratios of LARS and LAMB
            "trust_coefficient": 0.001,  # for LARS
            "grad_clip_norm": 0.0,  # global norm; 0 for no clipping
            "label_smoothing": 0.0,
            "ema_decay": 0.0,  # averages the weights and evaluates the average; 0 for none
            "precise_bn_batches": 0,  # batches for precise BN at each evaluation; 0 for none
            "parallel": "pmap",  # or "mesh"
            "mesh": {"fsdp": 1},  # number of devices that share one copy of the state
            "log_every_steps": 10,
            "eval_every_epochs": 1,
            "checkpoint_every_steps": 0,  # 0 for never
            "checkpoint_every_minutes": 10.0,  # 0 for never
            "checkpoint_max_to_keep": 3,  # the last ones; the best one is kept too
            "on_nonfinite": "stop",  # or "skip": discard the update
            "max_consecutive_nonfinite": 10,  # consecutive skipped updates that stop the run
            "ensemble": {
                "size": 1,  # number of networks trained as one program
                "seeds": (),  # one per member; () for seed, seed + 1, ...
                "share_init": False,  # the first member's initial parameters for all
                "share_order": False,  # its order of examples; reads each example once for all
                "share_augment": False,  # its random augmentation and dropout
                # One value per member; () for the run's own. See resflax.train.ensemble.
                "learning_rate": (),
                "weight_decay": (),
                "label_smoothing": (),
                "mixup": (),  # of data.mixup
                "drop_path": (),  # of spec.drop_path
                "member_devices": 0,  # devices along the mesh's member axis; 0 chooses
                "method": "auto",  # members on one device: "vmap", or "map", one after another
                # A member that is not finite: "drop" leaves it out, "freeze" keeps its last finite
                # state in the ensemble, "stop" ends the run.
                "on_diverged": "drop",
            },
            "data": {
                "data_dir": "",  # directory of prepared datasets; "" for TFDS's default
                # 0: images of one size, in memory; N: any size, resized to NxN; -1: any size,
                # resized to the pretrained model's input size.
                "image_size": 0,
                # Evaluation of resized images; 0 or "": the pretrained model's, or image_size,
                # 0.875 and "bilinear".
                "eval_size": 0,
                "crop_pct": 0.0,  # side of the center crop over that of the resized image
                "interpolation": "",  # "nearest", "bilinear", "bicubic" or "lanczos"
                "channels": 0,  # 1 or 3 converts all images; 0 keeps theirs
                "on_bad_example": "raise",  # or "skip": count and report
                # Share of the training split that is not trained on, the same of each class: for
                # calibration and the selection of members by `resflax evaluate`.
                "validation": 0.0,
                "validation_seed": 0,  # which examples these are, whatever the run's seed
                "placement": "auto",  # "host", "device", or "auto": small datasets on the device
                "num_workers": 0,  # processes that decode images of any size; 0 for threads
                "mean": (),  # of each channel, 0 to 1; (): the pretrained weights' or dataset's
                "std": (),
                "pad_crop": 0,  # pixels of padding before a random crop; 0 for none
                "inception_crop": False,  # crop 8 to 100 % of the area and resize it
                "flip": False,  # mirror at random
                "alternating_flip": False,  # mirror in every other epoch
                "rand_augment": (),  # number of operations and magnitude, as (2, 9)
                "color_jitter": (),  # brightness, contrast, saturation, hue: (0.4, 0.4, 0.4, 0.1)
                "random_erasing": 0.0,  # probability
                "cutout": 0,  # side of the erased square, in pixels
                "mixup": 0.0,  # alpha; 0 for none
                "cutmix": 0.0,
            },
        }
    )
    # Fields of the model's spec; None keeps the value of the named model.
    config.spec = ConfigDict(
        {
            f.name: placeholder(_flag_type(f.type))
            for f in dataclasses.fields(Spec)
            if f.name not in ("num_classes", "pruned")
        }
    )
    return config.lock()


def _flag_type(annotation: Any) -> type:
    """Returns the type of a field's flag: for a union, its first member."""
    if isinstance(annotation, types.UnionType):
        annotation = typing.get_args(annotation)[0]
    return typing.get_origin(annotation) or annotation


def to_json_dict(config: ConfigDict) -> dict[str, Any]:
    """Returns a config as JSON values.

    >>> to_json_dict(ConfigDict({"a": (1, 2), "b": {"c": None}}))
    {'a': [1, 2], 'b': {'c': None}}
    """
    return json.loads(json.dumps(config.to_dict()))


def spec_overrides(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields of the spec that a config sets."""
    return {key: value for key, value in config.spec.items() if value is not None}


def build_model(config: ConfigDict, num_classes: int | None = None) -> ResNet:
    """Builds the model that a config names, by default with the number of classes of its name."""
    overrides = spec_overrides(config)
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    return create_model(
        config.model, dtype=config.dtype, scan=config.scan, remat=config.remat, **overrides
    )


def build_augment(config: ConfigDict) -> Augment | None:
    """Builds the augmentation of a config; None if there is none."""
    data = config.data
    return make_augment(
        pad_crop=data.pad_crop,
        inception_crop=data.inception_crop,
        flip="alternating" if data.alternating_flip else "random" if data.flip else "none",
        rand_augment=data.rand_augment,
        color_jitter=data.color_jitter,
        random_erasing=data.random_erasing,
        cutout=data.cutout,
    )


def build_mix(config: ConfigDict) -> Mix | None:
    """Builds mixup and CutMix of a config; None if there are none."""
    return make_mix(mixup=config.data.mixup, cutmix=config.data.cutmix)
