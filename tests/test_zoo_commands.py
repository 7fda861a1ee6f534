"""The commands `list` and `info`, and the dispatch to all commands."""

import os
import re
import subprocess
import sys

import jax
import pytest

from resflax import UserError, create_model, list_models
from resflax.cli.main import COMMANDS, main
from resflax.cli.models import info_main, list_main
from resflax.weights.shapes import variable_shapes
from resflax.zoo.cost import default_image_shape, part_costs


def numbers(line):
    return [int(n.replace(",", "")) for n in re.findall(r"(?<![\dx])\d[\d,]*(?![\dx])", line)]


def test_list_prints_every_name_once(capsys):
    list_main([])
    assert capsys.readouterr().out.split() == list_models()
    list_main(["resnext50*"])
    assert capsys.readouterr().out == "resnext50_32x4d\nresnext50d_32x4d\n"
    with pytest.raises(UserError, match="no network matches 'vgg\\*'"):
        list_main(["vgg*"])


@pytest.mark.parametrize(
    ("name", "giga"),
    # As published by torchvision 0.29.1 (`weights.meta["_ops"]`).
    [
        ("resnet18", 1.814),
        ("resnet50", 4.089),
        ("resnext50_32x4d", 4.23),
        ("wide_resnet50_2", 11.398),
    ],
)
def test_multiply_adds_are_those_published_by_torchvision(name, giga):
    parts = part_costs(create_model(name, scan=False), (224, 224, 3))
    assert round(sum(part.multiply_adds for part in parts) / 1e9, 3) == giga
    if name == "resnet50":
        assert sum(part.multiply_adds for part in parts) == 4_089_184_256


@pytest.mark.parametrize(
    "name", ["cifar_plain56", "ecaresnet101d_pruned", "resnet1d50", "resnetv2_152d"]
)
def test_costs_of_one_of_the_equal_blocks_stand_for_all(name):
    model = create_model(name, scan=False)
    parts = part_costs(model, default_image_shape(model.spec))
    params = jax.tree.leaves(variable_shapes(model.spec)["params"])
    assert sum(part.parameters for part in parts) == sum(leaf.size for leaf in params)
    assert [part.blocks for part in parts] == [0, *model.spec.depths, 0]


def test_info_is_the_closed_form_of_cifar_resnet20(capsys):
    info_main(["cifar_resnet20"])
    title, _, *rows = capsys.readouterr().out.splitlines()
    assert title == "cifar_resnet20, 32x32x3"
    layer = 32 * 32 * 9 * 16 * 16  # of each convolution with stride 1
    expected = {
        "stem": [27 * 16 + 32, 32 * 32 * 27 * 16],
        "stage1": [3, 6 * (9 * 16**2 + 32), 6 * layer],
        "stage2": [3, 9 * 16 * 32 + 5 * 9 * 32**2 + 6 * 64, 5 * layer + layer // 2],
        "stage3": [3, 9 * 32 * 64 + 5 * 9 * 64**2 + 6 * 128, 5 * layer + layer // 2],
        "head": [10, 650, 640],
        "total": [9, 269_722, 32 * 32 * 27 * 16 + 17 * layer + 640],
    }
    counts = {row.split()[0]: numbers(row.split(" ", 1)[1]) for row in rows}
    assert counts == expected


def test_info_counts_attention_and_takes_size_and_channels(capsys):
    info_main(["ecaresnet26t", "--size", "100", "--channels", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ecaresnet26t, 100x100x1"
    assert "4x4x2048" in lines[-3]
    plain, eca = (
        part_costs(create_model(name, depths=(1, 1, 1, 1)), (64, 64, 3))
        for name in ("resnet26t", "ecaresnet26t")
    )
    added = [b.multiply_adds - a.multiply_adds for a, b in zip(plain, eca, strict=True)]
    assert added == [0, 5 * 256, 5 * 512, 5 * 1024, 7 * 2048, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: name"),
        (["resnet51"], "unknown model 'resnet51': did you mean resnet50"),
        (["resnet50", "--size", "16"], "--size is 16: expected 17 to 10000 pixels for resnet50"),
        (["resnet50", "--size", "10001"], "expected 17 to 10000 pixels"),
        (["resnet50", "--size", "big"], "argument --size: invalid int value: 'big'"),
        (["resnet50", "--channels", "0"], "--channels is 0: expected 1 to 10000"),
        (["resnet50", "--depth", "3"], "unrecognized arguments: --depth 3"),
    ],
)
def test_info_rejects_arguments_in_one_line(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as e:
        info_main(arguments)
    assert "\n" not in str(e.value)


def test_main_dispatches_to_commands(monkeypatch, capsys):
    assert main([]) == 0
    output = capsys.readouterr().out
    assert all(f"  {name}" in output for name in COMMANDS)
    monkeypatch.setattr(sys, "argv", ["resflax", "list", "plain*"])
    assert main() == 0
    assert capsys.readouterr().out == "plain18\nplain34\n"
    assert main(["lists"]) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("error: unknown command 'lists': did you mean list?")


@pytest.mark.slow
def test_module_reports_errors_in_one_line_with_status_2():
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-m", "resflax", "info", "resnet51"],
        capture_output=True, text=True, env=env, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith("error: unknown model 'resnet51': did you mean ")
    assert run.stderr.count("\n") == 1
