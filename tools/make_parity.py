"""Writes tests/parity.json: shapes, logits and feature maps of timm and torchvision networks.

tests/test_parity.py compares resflax with this file and so needs neither library. Nothing is
downloaded: each weight array is drawn from its own name. Needs `pip install timm==1.0.31
torchvision==0.29.1`. From the root of the repository:

    python tools/make_parity.py
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))  # the inputs are shared with the tests

from helpers.parity_inputs import (  # noqa: E402
    NUM_CLASSES,
    draw_array,
    draw_images,
    shapes_digest,
)

# Shallow networks: name, fields of the spec, size of the image or the clip.
DEPTHS = (1, 2, 1, 1)
DILATED = (1, 1, 2, 2)
NARROW = {"widths": (32, 64, 96, 128)}
CASES: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("resnet18", {"depths": DEPTHS}, (64, 96)),
    ("resnet50", {"depths": DEPTHS}, (64, 64)),
    ("resnet50d", {"depths": DEPTHS}, (71, 65)),
    ("wide_resnet50_2", {"depths": DILATED, "output_stride": 16, **NARROW}, (64, 64)),
    ("senet154", {"depths": DILATED, "output_stride": 8, **NARROW}, (64, 64)),
    ("seresnet18", {"depths": DEPTHS}, (64, 64)),
    ("ecaresnet26t", {"depths": DEPTHS}, (64, 64)),
    ("ecaresnet50d_pruned", {"depths": DEPTHS}, (64, 64)),
    ("resnetaa34d", {"depths": DEPTHS}, (64, 96)),
    ("seresnextaa101d_32x8d", {"depths": DILATED, "output_stride": 8, **NARROW}, (64, 64)),
    ("resnetblur50", {"depths": DILATED, "output_stride": 16}, (72, 64)),
    ("resnetrs50", {"depths": DEPTHS}, (64, 64)),
    ("resnet50_gn", {"depths": DEPTHS}, (64, 64)),
    ("test_resnet", {"depths": (1, 1, 1, 1)}, (64, 64)),
    ("resnetv2_18", {"depths": DEPTHS}, (64, 64)),
    ("resnetv2_50t", {"depths": DILATED, "output_stride": 8}, (64, 64)),
    ("resnetv2_50d_evos", {"depths": DEPTHS}, (64, 64)),
    ("resnetv2_50d_frn", {"depths": DEPTHS}, (64, 64)),
    ("resnetv2_50x1_bit", {"depths": DEPTHS}, (65, 64)),
    ("nf_resnet26", {"depths": DEPTHS}, (64, 96)),
    ("nf_resnet50", {"depths": DILATED, "output_stride": 8}, (71, 64)),
    ("r3d_18", {"depths": DEPTHS}, (6, 32, 40)),
    ("mc3_18", {"depths": DEPTHS}, (5, 32, 32)),
    ("r2plus1d_18", {"depths": DEPTHS}, (6, 32, 40)),
]
# Cases whose feature maps are recorded as well.
FEATURE_MAPS = ("resnetaa34d", "senet154", "resnetv2_18", "nf_resnet26")
# timm's names of the spec's fields.
TIMM_FIELDS = {"depths": "layers", "widths": "channels"}


def describe(model: Any) -> dict[str, Any]:
    """Returns the parameter count and the digest of the state dict's names and shapes."""
    shapes = {key: tuple(array.shape) for key, array in model.state_dict().items()}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "arrays": shapes_digest(shapes),
    }


def describe_all() -> dict[str, dict[str, Any]]:
    """Describes every ResNet of timm and torchvision, at full depth and without allocating it."""
    import timm
    import torch
    import torchvision

    names = {n for module in ("resnet", "resnetv2") for n in timm.list_models(module=module)}
    names |= {*timm.list_models("nf_resnet*")}
    families = ("resnet", "resnext", "wide_resnet", "r3d", "mc3", "r2plus1d")
    torchvision_names = [n for n in torchvision.models.list_models() if n.startswith(families)]
    with torch.device("meta"):
        networks = {f"timm/{name}": describe(timm.create_model(name)) for name in sorted(names)}
        networks |= {
            f"torchvision/{name}": describe(torchvision.models.get_model(name))
            for name in sorted(torchvision_names)
        }
    return networks


def make_timm(name: str, overrides: dict[str, Any]) -> Any:
    """Makes a network of timm."""
    import timm

    create = timm.create_model
    if name == "resnetv2_50x1_bit":  # timm's entry point does not accept `layers`
        create = partial(timm.models.resnetv2._create_resnetv2_bit, width_factor=1)
    names = {} if name.startswith("nf_") else TIMM_FIELDS
    fields = {names.get(key, key): value for key, value in overrides.items()}
    return create(name, num_classes=NUM_CLASSES, **fields)


def make_video(name: str, overrides: dict[str, Any]) -> Any:
    """Makes a network of torchvision for clips; its stages are cut, as it takes no depths."""
    import torchvision

    model = torchvision.models.get_model(name, num_classes=NUM_CLASSES)
    for i, depth in enumerate(overrides["depths"], start=1):
        setattr(model, f"layer{i}", getattr(model, f"layer{i}")[:depth])
    return model


def run_case(name: str, overrides: dict[str, Any], size: tuple[int, ...]) -> dict[str, Any]:
    """Returns the logits, and for some cases the feature maps, of a shallow network."""
    import torch

    make = make_video if len(size) == 3 else make_timm
    model = make(name, overrides).eval()
    state = {k: torch.from_numpy(draw_array(k, v.shape)) for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    with torch.no_grad():
        x = torch.from_numpy(draw_images(size))
        result = {
            "name": name,
            "overrides": overrides,
            "size": size,
            "arrays": shapes_digest({key: tuple(array.shape) for key, array in state.items()}),
            "logits": model(x)[0].tolist(),
        }
        if name in FEATURE_MAPS:
            maps = model.forward_intermediates(x, intermediates_only=True)
            result["maps"] = [
                {"shape": list(m.shape), "mean": m.double().mean().item(),
                 "rms": m.double().square().mean().sqrt().item()} for m in maps
            ]  # fmt: skip
    return result


def main() -> None:
    """Writes the file."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    import timm
    import torch
    import torchvision

    networks = describe_all()
    versions = {m.__name__: m.__version__ for m in (timm, torchvision, torch)}
    torch.set_num_threads(1)
    cases = [run_case(*case) for case in CASES]
    lines = [
        "{",
        f'"made with": {json.dumps(versions)},',
        '"networks": {',
        ",\n".join(f"{json.dumps(name)}: {json.dumps(net)}" for name, net in networks.items()),
        "},",
        '"cases": [',
        ",\n".join(json.dumps(case) for case in cases),
        "]",
        "}",
    ]
    (TESTS / "parity.json").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
