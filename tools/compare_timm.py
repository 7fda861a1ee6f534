"""Every network of timm's and torchvision's beside ours: logits, or the maps of all stages.

Needs `pip install timm==1.0.31 torchvision==0.29.1`; from the root of the repository:

    python tests/compare_timm.py                       # logits at 96x128 pixels (BiT: 128x160)
    python tests/compare_timm.py --maps                # the maps of the stem and of every stage
    python tests/compare_timm.py --output_stride=8     # dilated, logits at 64x96 pixels

Nothing is downloaded: weights are drawn as for tests/parity.json. Of seven giants only names and
shapes are compared. A line for each network, the largest difference over the largest value, and OK
or BAD (1e-4); the exit status is 1 if one is BAD.
"""

import argparse
import sys

import jax
import numpy as np
from make_parity import drawn

from resflax import create_model, get_spec
from resflax.weights import from_torch, to_torch
from resflax.weights.bridge import shapes_of
from resflax.weights.layouts import COUNT, default_layout, slots

GIANTS = {
    *("resnetrs420", "resnext101_32x16d", "resnext101_32x32d"),
    *(f"resnetv2_{name}_bit" for name in ("50x3", "101x3", "152x2", "152x4")),
}


def names():
    """(library, name) of all 111."""
    import timm
    from timm.models import _registry

    modules = _registry._model_to_module
    yield from (("timm", n) for n in timm.list_models() if modules[n] in ("resnet", "resnetv2"))
    for depth in (18, 34, 50, 101, 152):
        yield "torchvision", f"resnet{depth}"
    for name in ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"):
        yield "torchvision", name
    for depth in (50, 101):
        yield "torchvision", f"wide_resnet{depth}_2"


def make(library, name, **fields):
    import timm
    import torchvision

    if library == "torchvision":
        return getattr(torchvision.models, name)().eval()
    return timm.create_model(name, **fields).eval()


def giant(library, name):
    """Whether names and shapes are the same."""
    import torch

    with torch.device("meta"):
        state = make(library, name).state_dict()
    theirs = {key: tuple(x.shape) for key, x in state.items() if not key.endswith(COUNT)}
    spec = get_spec(name)
    ours = slots(default_layout(spec), spec, shapes_of(spec)) or []
    return 0.0 if {slot.key: slot.shape for slot in ours} == theirs else 1.0


def difference(library, name, *, maps, fields):
    """The largest difference over the largest value; the way back must be exact."""
    import torch

    net = make(library, name, **fields)
    weights = {key: drawn(key, tuple(x.shape)) for key, x in net.state_dict().items()}
    net.load_state_dict({key: torch.from_numpy(np.array(x)) for key, x in weights.items()})
    side = 64 if fields else 128 if name.endswith("_bit") else 96
    x = np.random.default_rng(2015).standard_normal((1, 3, side, side + 32)).astype(np.float32)
    with torch.no_grad():
        images = torch.from_numpy(x)
        forward = net.forward_intermediates if maps else net
        theirs = forward(images, **({"intermediates_only": True} if maps else {}))
    variables = from_torch(name, weights, **fields)
    back = to_torch(name, variables, **fields)
    if any(back[key].tobytes() != x.tobytes() for key, x in weights.items()):
        return 1.0
    model = create_model(name, features_only=maps, **fields)
    run = jax.jit(lambda v, x: model.apply(v, x, train=False))
    ours = run(variables, x.transpose(0, 2, 3, 1))
    pairs = [
        (np.asarray(a), b.numpy().transpose(0, 2, 3, 1) if maps else b.numpy())
        for a, b in zip(*((ours, theirs) if maps else ([ours], [theirs])), strict=True)
    ]
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maps", action="store_true")
    parser.add_argument("--output_stride", type=int, choices=(8, 16))
    args = parser.parse_args()
    fields = {"output_stride": args.output_stride} if args.output_stride else {}
    worst, count = 0.0, 0
    for library, name in names():
        if library == "torchvision" and (fields or args.maps):
            continue
        if name in GIANTS:
            found = giant(library, name)
        else:
            found = difference(library, name, maps=args.maps, fields=fields)
        print(f"{library} {name} {found:.1e} {'OK' if found < 1e-4 else 'BAD'}", flush=True)
        worst, count = max(worst, found), count + 1
        jax.clear_caches()
    print(f"{count} networks, largest difference {worst:.1e}")
    return 1 if worst >= 1e-4 else 0


if __name__ == "__main__":
    sys.exit(main())
