"""README.md of an exported folder: a model card for the Hugging Face Hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resflax.export.timm_names import find_timm_model, zoo_name
from resflax.export.trained_model import RunRecord, TrainedModel
from resflax.run.config_diff import flatten_config

CARD = "README.md"
TAG = "resflax"
MAX_CLASS_NAMES = 100
RESULTS = {
    "test_accuracy": "accuracy",
    "test_loss": "loss",
    "validation_accuracy": "accuracy on the validation split",
    "validation_loss": "loss on the validation split",
    "test_examples": "test examples",
    "train_examples": "training examples",
    "steps": "steps",
    "wall_seconds": "seconds of training",
    "platform": "platform",
    "device_count": "devices",
    "jax_version": "JAX",
}
LOAD = """\
```python
import jax, numpy as np
import resflax

loaded = resflax.load_pretrained("{folder}")
images = np.stack([loaded.preprocess("image.jpg")])
logits = loaded.model.apply(loaded.variables, images, train=False)
print(loaded.classes[int(logits[0].argmax())] if loaded.classes else int(logits[0].argmax()))
```"""
LOAD_TIMM = """\
```python
import timm

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()  # or "hf-hub:owner/name"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```"""
LOAD_TRANSFORMERS = """\
```python
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("{folder}")
model = AutoModelForImageClassification.from_pretrained("{folder}")
```"""


def write_card(
    model: TrainedModel,
    folder: Path,
    *,
    name: str,
    library: str,
    license_name: str = "",
    train_command: str = "",
    verifications: Sequence[object] = (),
) -> None:
    """Writes README.md.

    Args:
      model: the model.
      folder: where to write.
      name: name of the exported folder, for titles and commands.
      library: "timm" or "transformers".
      license_name: license of the weights, by the Hub's identifiers.
      train_command: command that trained the model.
      verifications: printed one per line.
    """
    loads = library != "timm" or find_timm_model(model.spec) is not None
    parts = [
        _header(library if loads else "resflax", license_name),
        f"# {name}",
        _summary(model),
        _section("Preprocessing", _preprocessing(model)),
        _section("Classes", _classes(model)),
        _section("Training", _training(model, train_command)),
        _section("Results", _results(model.run)),
        _section("Use", _use(model, name, library if loads else "")),
        _section("Verification", "\n".join(f"- {line}" for line in verifications)),
        _section("License", _license(license_name)),
    ]
    (folder / CARD).write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def is_model_card(path: Path) -> bool:
    """Returns whether a file is a model card that `write_card` wrote."""
    try:
        return f"\n- {TAG}\n" in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _header(library: str, license_name: str) -> str:
    """Returns the Hub's YAML header."""
    comment = "" if license_name else "  # the author has not stated one"
    return "\n".join(
        [
            "---",
            f"library_name: {library}",
            "pipeline_tag: image-classification",
            f"license: {license_name or 'unknown'}{comment}",
            "tags:",
            "- image-classification",
            "- resnet",
            f"- {TAG}",
            "---",
        ]
    )


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _summary(model: TrainedModel) -> str:
    spec, preprocess = model.spec, model.preprocess
    architecture = zoo_name(spec) or "a residual network"
    data = model.run.config.get("dataset") if model.run else None
    return (
        f"Image classifier: {architecture}, {model.parameters:,} parameters,"
        f" {spec.num_classes} classes, images of {preprocess.size[0]}x{preprocess.size[1]} pixels"
        f" with {model.config.channels} channel{'s' * (model.config.channels > 1)}."
        f"{f' Trained on `{data}`.' if data else ''} Exported by resflax from {model.source}."
    )


def _preprocessing(model: TrainedModel) -> str:
    p = model.preprocess
    rows = {
        "size": f"{p.size[0]}x{p.size[1]}",
        "crop_pct": p.crop_pct,
        "crop_mode": p.crop_mode,
        "interpolation": p.interpolation,
        "mean": ", ".join(f"{value:.6g}" for value in p.mean),
        "std": ", ".join(f"{value:.6g}" for value in p.std),
    }
    return (
        f"{_table(('setting', 'value'), rows)}\n\nPixels are divided by 255, then the mean is"
        " subtracted and the result divided by the standard deviation, per channel."
    )


def _classes(model: TrainedModel) -> str:
    if not model.config.labels:
        return f"{model.spec.num_classes} classes without names."
    shown = model.config.labels[:MAX_CLASS_NAMES]
    rest = len(model.config.labels) - len(shown)
    more = f" and {rest} more, in `config.json`" if rest else ""
    return ", ".join(f"{i}: {label}" for i, label in enumerate(shown)) + f"{more}."


def _training(model: TrainedModel, train_command: str) -> str:
    if model.run is None or not model.run.config:
        return "Not recorded: the weights do not come from a run of resflax."
    changed = changed_keys(model.run.config)
    table = _table(("key", "value"), {f"`{key}`": f"`{v}`" for key, v in changed.items()})
    command = f"\n\n```sh\n{train_command}\n```" if train_command else ""
    return (
        f"Keys of the config that differ from `resflax.train.default_config()`:\n\n{table}{command}"
    )


def changed_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a run's config that differ from the defaults, by dotted key."""
    from resflax.train.config import default_config, to_json_dict

    defaults = flatten_config(to_json_dict(default_config()))
    return {
        key: value
        for key, value in flatten_config(config).items()
        if key not in defaults or defaults[key] != value
    }


def _results(run: RunRecord | None) -> str:
    if run is None or not run.results:
        return ""
    rows = {title: run.results[key] for key, title in RESULTS.items() if key in run.results}
    return _table(("of the test split", "value"), rows)


def _use(model: TrainedModel, name: str, library: str) -> str:
    parts = [LOAD.format(folder=name)]
    if library == "timm":
        parts.append(LOAD_TIMM.format(folder=name))
    if library == "transformers":
        parts.append(LOAD_TRANSFORMERS.format(folder=name))
    dataset = model.run.config.get("dataset") if model.run else None
    parts.append(
        f"```sh\nresflax predict image.jpg --weights={name}\n"
        f"resflax evaluate {name} --dataset={dataset or 'folder:PATH'}\n```"
    )
    return "\n\n".join(parts)


def _license(license_name: str) -> str:
    if license_name:
        return f"{license_name}."
    return (
        "Not stated. Set `license` above, or export with `--license=NAME`, before you publish the"
        " weights; the licenses of the training data and of pretrained weights apply."
    )


def _table(header: tuple[str, str], rows: dict[str, Any]) -> str:
    lines = [f"| {header[0]} | {header[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {key} | {value} |" for key, value in rows.items())])
