"""`resflax convert IN OUT`: weights files to and from torch."""

import importlib.metadata
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from resflax.errors import Parser, UserError
from resflax.files import path_type, where_type
from resflax.nn import Spec
from resflax.weights import PretrainedConfig, read_weights, save_file, to_torch
from resflax.weights.bridge import Variables, flatten
from resflax.weights.file_kinds import SUFFIXES
from resflax.weights.layouts import LAYOUTS, default_layout
from resflax.weights.torch_reference import torch_logits
from resflax.zoo import create_model

FLAX = "flax"  # the names of `flatten`
VERIFY_RTOL = 1e-3


def convert_main(arguments: list[str]) -> None:
    """Converts weights to another naming or file format; optionally verifies them with PyTorch.

    Raises:
      UserError: if the weights cannot be read, converted, verified or written.
    """
    parser = Parser(
        prog="resflax convert",
        description="Converts weights (.safetensors, .pth, a folder, a Hub repository, a run) to"
        " resflax's names, or to PyTorch's.",
    )
    parser.add_argument(
        "source",
        metavar="IN",
        type=where_type,
        help="a file, a folder, a Hub owner/name, or a workdir: DIR, DIR@best or DIR@STEP",
    )
    parser.add_argument("target", metavar="OUT", type=path_type, help="a .safetensors or .pth file")
    parser.add_argument(
        "--model", metavar="NAME", help="model name; default: from the config.json next to IN"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    parser.add_argument(
        "--layout",
        choices=(FLAX, *LAYOUTS),
        help=f"names in OUT; default: {FLAX} for torch weights, the model's torch layout for"
        f" {FLAX} weights and runs",
    )
    parser.add_argument("--verify", action="store_true", help="compare the logits with PyTorch")
    args = parser.parse_args(arguments)
    if args.target.suffix not in SUFFIXES:
        raise UserError(f"OUT is {args.target}: expected a name ending in .safetensors or .pth")
    if args.target.is_dir():
        raise UserError(f"OUT is {args.target}, a folder: expected the name of a file")
    if not args.target.absolute().parent.is_dir():
        raise UserError(f"OUT is {args.target}: the folder {args.target.parent} does not exist")
    _check_not_input(args.target, Path(args.source))
    weights = read_weights(args.source, args.model, revision=args.revision)
    config, variables, source, is_flax, *_ = weights
    print(source)
    layout = args.layout or (default_layout(config.spec) if is_flax else FLAX)
    if layout == FLAX:
        arrays = flatten(variables)
    else:
        arrays = to_torch(config.spec, variables, layout=layout)
    if args.verify:
        print(compare_with_torch(config, variables))
    save_file(args.target, arrays)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    print(f"wrote {args.target}: {len(arrays)} arrays, {count:,} parameters, names: {layout}")


def _check_not_input(target: Path, source: Path) -> None:
    """Raises `UserError` if OUT is a file that is read, which it would replace."""
    if not source.exists() or not target.exists():
        return
    inputs = [*source.glob("*"), source] if source.is_dir() else [source]
    if any(path.samefile(target) for path in inputs if path.exists()):
        raise UserError(f"OUT is {target}, which is read as IN: choose another name")


def compare_with_torch(config: PretrainedConfig, variables: Variables) -> str:
    """Compares resflax's and PyTorch's logits on two noise inputs and returns a summary line.

    Raises:
      UserError: if they differ by more than 1e-3 of the largest logit, or PyTorch is missing.
    """
    *sides, channels = config.input_shape
    shape = (2, *sides, channels)
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = torch_logits(config.spec, variables, images)
    difference = np.abs(compute_logits(config.spec, variables, images) - expected).max()
    largest = np.abs(expected).max()
    version = importlib.metadata.version("torch")
    summary = (
        f"largest logit difference {difference:.2e}, {difference / largest:.2e} of the largest"
        f" logit {largest:.4g} (PyTorch {version}, two inputs of {'x'.join(map(str, sides))})"
    )
    if not difference <= VERIFY_RTOL * largest:
        raise UserError(f"{summary}: expected at most {VERIFY_RTOL:g}; nothing was written")
    return summary


def compute_logits(
    spec: Spec, variables: Variables, images: Float[np.ndarray, "n *space c"]
) -> Float[np.ndarray, "n classes"]:
    """Returns the float32 logits in evaluation mode."""
    model = create_model(spec, scan=False)
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images))
