"""The command `convert`."""

import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest
from helpers.weight_files import TIMM, assert_same, state_of
from PIL import Image

from resflax import UserError
from resflax.cli.weights import convert_main
from resflax.weights import (
    from_torch,
    load_file,
    load_pretrained,
    read_weights,
    save_file,
    to_torch,
)
from resflax.weights.bridge import flatten, unflatten
from resflax.weights.mismatch import describe_network
from resflax.weights.preprocess import default_preprocess
from resflax.weights.shapes import variable_shapes
from resflax.zoo import get_spec

SPEC = get_spec("cifar_resnet8")


def counted_state(spec=SPEC, layout=None, channels=3):
    """Returns a state dict whose batch norms have counted 7 batches."""
    state = state_of(spec, layout, channels)
    return {k: np.array(7) if array.dtype == np.int64 else array for k, array in state.items()}


@pytest.mark.parametrize("layout", ["timm", "cifar", "huggingface"])
def test_convert_round_trip_is_exact(tmp_path, capsys, layout):
    state = counted_state(layout=layout)
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("torch", "flax", "back")]
    save_file(paths[0], state)
    convert_main([*paths[:2], "--model", "cifar_resnet8"])
    convert_main([*paths[1:], "--model", "cifar_resnet8", "--layout", layout])
    _, first, _, second = capsys.readouterr().out.splitlines()
    assert_same(load_file(paths[1]), flatten(from_torch(SPEC, state)))
    assert_same(load_file(paths[2]), state)
    assert first == (
        f"wrote {paths[1]}: {len(load_file(paths[1]))} arrays, 75,290 parameters, names: flax"
    )
    assert second.endswith(f"{len(state)} arrays, 75,290 parameters, names: {layout}")


def test_convert_defaults_to_the_opposite_layout(tmp_path):
    spec = SPEC.override(num_classes=3)
    save_file(tmp_path / "a.safetensors", counted_state(spec, channels=1))
    flax, torch = (str(tmp_path / f"{name}.safetensors") for name in ("flax", "torch"))
    convert_main([str(tmp_path / "a.safetensors"), flax, "--model", "cifar_resnet8"])
    convert_main([flax, torch, "--model", "cifar_resnet8"])
    assert_same(load_file(torch), counted_state(spec, channels=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a network in timm's layout, its config, and an image."""
    path = tmp_path_factory.mktemp("commands")
    config = {**TIMM, "architecture": "cifar_resnet8", "label_names": [*"abcdefg"]}
    config["pretrained_cfg"] = TIMM["pretrained_cfg"] | {"input_size": [3, 32, 32]}
    (path / "config.json").write_text(json.dumps(config))
    save_file(path / "model.safetensors", counted_state(SPEC.override(num_classes=7), "timm"))
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path / "cat.png")
    return path


def test_convert_finds_the_model_in_the_config(folder, tmp_path):
    convert_main([str(folder), str(tmp_path / "a.safetensors")])
    convert_main([str(folder / "model.safetensors"), str(tmp_path / "b.safetensors")])
    variables = load_pretrained(folder).variables
    assert_same(load_file(tmp_path / "a.safetensors"), flatten(variables))
    assert_same(load_file(tmp_path / "b.safetensors"), flatten(variables))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}/model.safetensors"], "the following arguments are required: OUT"),
        (["{0}", "{1}/a.npz"], "a.npz: expected a name ending in .safetensors or .pth"),
        (["{0}/cat.png", "{1}/a.safetensors"], "cat.png is not a weights file"),
        (
            ["{1}/nothing", "{1}/a.safetensors"],
            "nothing is not an existing file or",
        ),
        (["{0}", "{1}/a.safetensors", "--model", "resnet51"], "unknown model 'resnet51'"),
        (["{0}", "{1}/a.safetensors", "--model", "resnet18"], "not a state dict of resnet18"),
        (["{0}", "{1}/a.safetensors", "--layout", "timm_v3"], "invalid choice: 'timm_v3'"),
        (["{0}", "{1}/no/a.safetensors"], "does not exist"),
        (["{0}", "{1}/folder.pth"], "folder.pth, a folder: expected the name of a file"),
    ],
)
def test_convert_errors_are_one_line_and_write_nothing(folder, tmp_path, arguments, message):
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UserError, match=re.escape(message)) as e:
        convert_main([argument.format(folder, tmp_path) for argument in arguments])
    assert "\n" not in str(e.value)
    assert [*tmp_path.rglob("*")] == [tmp_path / "folder.pth"]


@pytest.mark.parametrize("target", ["model.safetensors", "sub/../model.safetensors", "link.pth"])
@pytest.mark.parametrize("source", ["", "model.safetensors"])
def test_convert_does_not_replace_its_input(folder, tmp_path, source, target):
    here = shutil.copytree(folder, tmp_path / "net")
    (here / "sub").mkdir()
    (here / "link.pth").symlink_to(here / "model.safetensors")
    before = (here / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="which is read as IN: choose another name"):
        convert_main([str(here / source), str(here / target)])
    assert (here / "model.safetensors").read_bytes() == before


FOREIGN = {
    "another model": '{"model_type": "vit", "hidden_size": 3}',
    "model of timm": '{"architecture": "vit_base_patch16_224", "num_classes": 10}',
    "settings": '{"lr": 0.1}',
    "list": "[1, 2]",
    "not JSON": "{",
    "not text": "\xff",
}


@pytest.mark.parametrize("case", FOREIGN)
def test_given_model_wins_over_a_foreign_config(tmp_path, case):
    save_file(tmp_path / "w.safetensors", counted_state())
    (tmp_path / "config.json").write_bytes(FOREIGN[case].encode("latin1"))
    weights = read_weights(tmp_path / "w.safetensors", "cifar_resnet8")
    assert "config.json next to it is that of something else, and not used" in weights.source
    assert_same(flatten(weights.variables), flatten(from_torch(SPEC, counted_state())))
    with pytest.raises(UserError, match=r"config.json.* or the model's name \(--model NAME"):
        read_weights(tmp_path / "w.safetensors")


def test_given_model_wins_over_the_config_of_another(folder, tmp_path):
    """Neither class names nor normalization of the config are those of the weights."""
    shutil.copy(folder / "config.json", tmp_path)
    save_file(tmp_path / "w.safetensors", counted_state(get_spec("cifar_resnet14")))
    weights = read_weights(tmp_path / "w.safetensors", "cifar_resnet14")
    assert weights.config.spec == get_spec("cifar_resnet14")
    assert weights.config.labels == ()
    assert weights.config.preprocess == default_preprocess(weights.config.spec)
    assert "the config.json next to it is that of something else, and not used" in weights.source
    with pytest.raises(UserError, match="these look like cifar_resnet14's"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "is_flax"),
    [("resnet18", True), ("resnet34", False), ("seresnet50", False), ("wrn16_4", False)],
)
def test_error_names_the_network_that_arrays_look_like(name, is_flax):
    spec = get_spec(name).override(num_classes=3)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variable_shapes(spec))
    arrays = flatten(variables) if is_flax else to_torch(spec, variables)
    assert describe_network(arrays) == f"these look like {name}'s"
    assert describe_network(arrays, get_spec("resnet26")) == f"these look like {name}'s"
    assert describe_network(arrays, spec) == ""
    with pytest.raises(UserError) as e:
        from_torch("resnet26", arrays) if not is_flax else unflatten("resnet26", arrays)
    assert str(e.value).endswith(f": these look like {name}'s")
    assert len(str(e.value)) < 700


def test_error_names_a_depth_of_a_family():
    state = counted_state(get_spec("cifar_resnet26"))
    assert describe_network(state) == "these look like cifar_resnet26's"


def test_convert_of_a_single_file_needs_the_model_name(tmp_path):
    save_file(tmp_path / "a.safetensors", counted_state())
    with pytest.raises(UserError, match=r"cannot tell which model .* \(--model NAME"):
        convert_main([str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")])


def test_verify_reports_the_difference_to_pytorch(folder, tmp_path, capsys):
    pytest.importorskip("torch")
    convert_main([str(folder), str(tmp_path / "a.pth"), "--verify"])
    output = capsys.readouterr().out
    pattern = r"largest logit difference (\S+), (\S+) of the largest logit (\S+) \("
    match = re.search(pattern, output)
    assert 0 <= float(match[2]) < 1e-5
    assert float(match[3]) > 0.01


def test_verify_without_torch_says_what_to_install(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        UserError, match=r'this comparison needs PyTorch: pip install "resflax\[torch\]"'
    ):
        convert_main([str(folder), str(tmp_path / "a.safetensors"), "--verify"])
    assert [*tmp_path.iterdir()] == []
