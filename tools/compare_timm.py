"""Compares resflax with every timm and torchvision ResNet: logits, or all feature maps.

Weights are not downloaded; they are drawn as for tests/parity.json. Seven very large networks are
compared by names and shapes only. Prints for each network the largest difference divided by the
largest value, and OK or BAD (1e-4 or more); exits with status 1 if any is BAD. Needs `pip install
timm==1.0.31 torchvision==0.29.1`. From the root of the repository:

    python tools/compare_timm.py                       # logits, 96x128 pixels (BiT: 128x160)
    python tools/compare_timm.py --maps                # feature maps of the stem and each stage
    python tools/compare_timm.py --output_stride=8     # dilated, logits, 64x96 pixels
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resflax import create_model, get_spec
from resflax.weights import from_torch, to_torch
from resflax.weights.array_specs import array_specs
from resflax.weights.layouts import BATCH_COUNT, default_layout
from resflax.weights.shapes import variable_shapes

# The drawn weights are shared with the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.parity_inputs import draw_array

TOLERANCE = 1e-4
# Too large to run.
SHAPES_ONLY = {
    *("resnetrs420", "resnext101_32x16d", "resnext101_32x32d"),
    *(f"resnetv2_{name}_bit" for name in ("50x3", "101x3", "152x2", "152x4")),
}


def network_names() -> Iterator[tuple[str, str]]:
    """Yields (library, name) of all 111 networks."""
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


def create_torch_model(library: str, name: str, **fields: Any) -> Any:
    """Creates a torchvision or timm network in evaluation mode."""
    import timm
    import torchvision

    if library == "torchvision":
        return getattr(torchvision.models, name)().eval()
    return timm.create_model(name, **fields).eval()


def same_shapes(library: str, name: str) -> bool:
    """Returns whether names and shapes of all arrays are equal."""
    import torch

    with torch.device("meta"):
        state = create_torch_model(library, name).state_dict()
    expected = {key: tuple(x.shape) for key, x in state.items() if not key.endswith(BATCH_COUNT)}
    spec = get_spec(name)
    specs = array_specs(default_layout(spec), spec, variable_shapes(spec)) or []
    return {s.key: s.shape for s in specs} == expected


def relative_difference(library: str, name: str, *, maps: bool, fields: dict[str, Any]) -> float:
    """Returns the largest difference of logits or feature maps, over the largest value.

    Returns 1 if `to_torch` does not restore every array exactly.
    """
    import torch

    net = create_torch_model(library, name, **fields)
    weights = {key: draw_array(key, tuple(x.shape)) for key, x in net.state_dict().items()}
    net.load_state_dict({key: torch.from_numpy(np.array(x)) for key, x in weights.items()})
    side = 64 if fields else 128 if name.endswith("_bit") else 96
    x = np.random.default_rng(2015).standard_normal((1, 3, side, side + 32)).astype(np.float32)
    with torch.no_grad():
        images = torch.from_numpy(x)
        if maps:
            expected = net.forward_intermediates(images, intermediates_only=True)
        else:
            expected = [net(images)]
    variables = from_torch(name, weights, **fields)
    restored = to_torch(name, variables, **fields)
    if any(restored[key].tobytes() != array.tobytes() for key, array in weights.items()):
        return 1.0
    model = create_model(name, features_only=maps, **fields)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
    outputs = apply(variables, x.transpose(0, 2, 3, 1))
    pairs = [
        (np.asarray(a), b.numpy().transpose(0, 2, 3, 1) if maps else b.numpy())
        for a, b in zip(outputs if maps else [outputs], expected, strict=True)
    ]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def main() -> int:
    """Compares all networks and returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--maps", action="store_true", help="compare feature maps, not logits")
    parser.add_argument("--output_stride", type=int, choices=(8, 16), help="dilate the networks")
    args = parser.parse_args()
    fields = {"output_stride": args.output_stride} if args.output_stride else {}
    worst, count = 0.0, 0
    for library, name in network_names():
        if library == "torchvision" and (fields or args.maps):
            continue
        if name in SHAPES_ONLY:
            difference = 0.0 if same_shapes(library, name) else 1.0
        else:
            difference = relative_difference(library, name, maps=args.maps, fields=fields)
        verdict = "OK" if difference < TOLERANCE else "BAD"
        print(f"{library} {name} {difference:.1e} {verdict}", flush=True)
        worst, count = max(worst, difference), count + 1
        jax.clear_caches()
    print(f"{count} networks, largest difference {worst:.1e}")
    return 1 if worst >= TOLERANCE else 0


if __name__ == "__main__":
    sys.exit(main())
