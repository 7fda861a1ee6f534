"""Writes tests/parity.json: what timm's and torchvision's networks are, for tests/test_parity.py.

Needs `pip install timm==1.0.31 torchvision==0.29.1`; from the root of the repository:

    python tests/make_parity.py

Nothing is downloaded: weights are drawn (`drawn`), each array from its own name.
"""

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np

# Shallow nets: a name, fields of our specs (`case` has timm's words for them), an image's size.
DEPTHS = (1, 2, 1, 1)
DILATED = (1, 1, 2, 2)
NARROW = {"widths": (32, 64, 96, 128)}
CASES = [
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
]
MAPS = ("resnetaa34d", "senet154", "resnetv2_18")
CLASSES = 10


def drawn(key, shape):
    """The array of that name: everywhere the same, and near what trained nets hold."""
    seed = hashlib.sha256(key.encode()).digest()[:8]
    rng = np.random.default_rng(int.from_bytes(seed, "little"))
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_mean"):
        array = 0.1 * rng.standard_normal(shape)
    elif key.endswith("running_var"):
        array = rng.uniform(0.5, 1.5, shape)
    elif len(shape) > 1:
        array = rng.standard_normal(shape) * np.sqrt(1.5 / np.prod(shape[1:]))
    elif key.endswith("bias"):
        array = 0.1 * rng.standard_normal(shape)
    else:
        array = rng.uniform(0.4, 0.9, shape)
    return array.astype(np.float32)


def images(size):
    """One image of noise, (1, 3, height, width)."""
    return np.random.default_rng(2015).standard_normal((1, 3, *size)).astype(np.float32)


def digest(shapes):
    """A hash of names and shapes, in whatever order."""
    lines = sorted(f"{key} {'x'.join(map(str, shape))}" for key, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def identity(model):
    shapes = {key: tuple(array.shape) for key, array in model.state_dict().items()}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "arrays": digest(shapes),
    }


def case(name, overrides, size):
    import timm
    import torch

    called = {"depths": "layers", "widths": "channels"}
    theirs = {called.get(k, k): v for k, v in overrides.items()}
    create = timm.create_model
    if name == "resnetv2_50x1_bit":  # whose own function takes no `layers`
        create = partial(timm.models.resnetv2._create_resnetv2_bit, width_factor=1)
    model = create(name, num_classes=CLASSES, **theirs).eval()
    state = {k: torch.from_numpy(drawn(k, v.shape)) for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    with torch.no_grad():
        x = torch.from_numpy(images(size))
        result = {
            "name": name,
            "overrides": overrides,
            "size": size,
            "arrays": digest({key: tuple(array.shape) for key, array in state.items()}),
            "logits": model(x)[0].tolist(),
        }
        if name in MAPS:
            maps = model.forward_intermediates(x, intermediates_only=True)
            result["maps"] = [
                {"shape": list(m.shape), "mean": m.double().mean().item(),
                 "rms": m.double().square().mean().sqrt().item()} for m in maps
            ]  # fmt: skip
    return result


def main():
    import timm
    import torch
    import torchvision

    names = {n for module in ("resnet", "resnetv2") for n in timm.list_models(module=module)}
    families = ("resnet", "resnext", "wide_resnet")
    vision = [n for n in torchvision.models.list_models() if n.startswith(families)]
    with torch.device("meta"):
        nets = {f"timm/{name}": identity(timm.create_model(name)) for name in sorted(names)}
        nets |= {
            f"torchvision/{name}": identity(torchvision.models.get_model(name))
            for name in sorted(n for n in vision if "quantized" not in n)
        }
    versions = {m.__name__: m.__version__ for m in (timm, torchvision, torch)}
    torch.set_num_threads(1)
    cases = [case(*row) for row in CASES]
    lines = [
        "{",
        f'"made with": {json.dumps(versions)},',
        '"networks": {',
        ",\n".join(f"{json.dumps(name)}: {json.dumps(net)}" for name, net in nets.items()),
        "},",
        '"cases": [',
        ",\n".join(json.dumps(one) for one in cases),
        "]",
        "}",
    ]
    Path(__file__).with_name("parity.json").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
