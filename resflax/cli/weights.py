"""`python -m resflax convert` and `predict`: weights as files, to ours and back, and used."""

from functools import partial
from pathlib import Path

import jax
import numpy as np

from resflax.errors import Parser, UserError
from resflax.nn import Spec
from resflax.weights import files, hub
from resflax.weights.bridge import (
    Variables,
    flatten,
    to_torch,
)
from resflax.weights.hub import read_weights
from resflax.weights.layouts import LAYOUTS, default_layout
from resflax.weights.torch_reference import torch_logits
from resflax.zoo import create_model

OURS = "flax"


def convert_main(arguments: list[str]) -> None:
    """Reads weights, writes them under other names, and compares with PyTorch if asked to.

    Raises:
      UserError: on anything that cannot be read, understood or written.
    """
    parser = Parser(
        prog="python -m resflax convert",
        description="Weights of torch (.safetensors, .pth, a folder, the Hub) as a file of ours,"
        " or the other way round.",
    )
    parser.add_argument("source", metavar="IN", help="a file, a folder, or owner/name of the Hub")
    parser.add_argument("target", metavar="OUT", type=Path, help="a .safetensors or .pth file")
    parser.add_argument("--model", metavar="NAME", help="the network; a folder's config tells it")
    parser.add_argument(
        "--layout",
        choices=(OURS, *LAYOUTS),
        help=f"names in OUT; default: {OURS} for weights of torch, torch's for ours",
    )
    parser.add_argument("--verify", action="store_true", help="compare logits with PyTorch's")
    args = parser.parse_args(arguments)
    if args.target.suffix not in (".safetensors", *files.TORCH):
        raise UserError(f"OUT is {args.target}: expected a name that ends in .safetensors or .pth")
    card, variables, ours = read_weights(args.source, args.model)
    layout = args.layout or (default_layout(card.spec) if ours else OURS)
    to_theirs = partial(to_torch, card.spec, layout=layout)
    arrays = (flatten if layout == OURS else to_theirs)(variables)
    if args.verify:
        print(verified(card, variables))
    files.save(args.target, arrays)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    print(f"wrote {args.target}: {len(arrays)} arrays, {count:,} parameters, names: {layout}")


def verified(card: hub.PretrainedConfig, variables: Variables) -> str:
    """Says by how much our logits and PyTorch's differ on two images of noise.

    Raises:
      UserError: if they differ by more than 1e-3 of the largest.
    """
    import importlib.metadata

    shape = (2, *card.preprocess.size, card.channels)
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    theirs = torch_logits(card.spec, variables, images)
    difference = np.abs(logits(card.spec, variables, images) - theirs).max()
    largest = np.abs(theirs).max()
    version = importlib.metadata.version("torch")
    text = (
        f"largest logit difference {difference:.2e}, {difference / largest:.2e} of the largest"
        f" logit {largest:.4g} (PyTorch {version}, two images of {shape[1]}x{shape[2]})"
    )
    if not difference <= 1e-3 * largest:
        raise UserError(f"{text}: expected less than 1e-3; nothing was written")
    return text


def logits(spec: Spec, variables: Variables, images: np.ndarray) -> np.ndarray:
    """The network's logits in float32."""
    model = create_model(spec, scan=False)
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images))


def predict_main(arguments: list[str]) -> None:
    """Prints the five most probable classes of each image.

    Raises:
      UserError: on weights or an image that cannot be read.
    """
    parser = Parser(
        prog="python -m resflax predict", description="The five most probable classes of an image."
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument("--weights", required=True, help="a file, a folder, or owner/name")
    parser.add_argument("--model", metavar="NAME", help="the network, if the weights are a file")
    parser.add_argument("--labels", type=Path, help="names of the classes, one a line")
    args = parser.parse_args(arguments)
    card, variables, _ = read_weights(args.weights, args.model)
    if not card.spec.num_classes:
        raise UserError(f"{args.weights} has no head: expected weights with classes")
    labels = _labels(args.labels, card)
    batch = np.stack([card.preprocess(path) for path in args.images])
    scores = logits(card.spec, variables, batch)
    for path, row in zip(args.images, np.asarray(jax.nn.softmax(scores)), strict=True):
        print(path)
        for index in np.argsort(-row)[:5]:
            print(f"  {row[index]:7.2%}  {labels[index] if labels else f'class {index}'}")


def _labels(path: Path | None, card: hub.PretrainedConfig) -> tuple[str, ...]:
    try:
        labels = tuple(path.read_text().splitlines()) if path else card.labels
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"cannot read the labels in {path}: {e}") from e
    if labels and len(labels) != card.spec.num_classes:
        raise UserError(
            f"there are {len(labels)} labels: expected {card.spec.num_classes}, one for each class"
        )
    return labels
