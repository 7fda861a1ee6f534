"""The studies of tables 1 and 2 of He et al. 2016: claims checked against curves."""

import json

import numpy as np
import pytest
from PIL import Image

from resflax.cli import study as cli
from resflax.study import activation, shortcuts2016
from resflax.study.variants import ORIGINAL, Claim, Variant, analyze, compare
from resflax.zoo import create_model


def make_curves(*finals):
    """Curves of one learning rate, with a seed for each final error."""
    return {key: [[[90.0, final] for final in finals]] for key in ("train", "test", "loss")}


@pytest.mark.parametrize(
    ("errors", "expected"),
    [((3.0, 4.0), "higher"), ((2.0, 4.0), "close"), ((0.5, 0.9), "lower"), ((1.0, 0.0), "close")],
)
def test_relation_needs_every_seed_on_one_side(errors, expected):
    assert compare(errors, (1.0, 2.0)) == expected


def test_verdict_counts_the_claims_that_held():
    curves = {
        ORIGINAL: make_curves(1.0, 2.0),
        "a": make_curves(3.0, 5.0),
        "b": make_curves(1.5, 5.0),
        "c": make_curves(1.5, 1.0),
    }
    variants = {label: Variant({}, "6.61") for label in curves}
    claims = [Claim("a", "higher"), Claim("b", "higher"), Claim("c", "close")]
    result = analyze(curves, variants, claims, [0.1])
    assert [claim["held"] for claim in result["claims"]] == [True, False, True]
    assert [claim["difference"] for claim in result["claims"]] == [2.5, 1.75, -0.25]
    assert result["verdict"] == "2 of 3 claims of the paper held"
    assert result["text"].splitlines() == [
        "held: the test error of a is higher (+2.50 points, the ranges of the seeds do not"
        " overlap)",
        "NOT held, expected higher: the test error of b is close (+1.75 points, the ranges of"
        " the seeds overlap)",
        "held: the test error of c is close (-0.25 points, the ranges of the seeds overlap)",
        "2 of 3 claims of the paper held.",
    ]
    assert "| a | 0.1 | 4.00 (3.00 to 5.00) | 4.00 (3.00 to 5.00) | 6.61 |" in result["table"]


@pytest.mark.parametrize("study", [shortcuts2016, activation])
def test_tables_are_different_networks_with_one_claim_each(study):
    specs = {
        label: create_model("cifar_resnet8", **variant.fields).spec
        for label, variant in study.VARIANTS.items()
    }
    assert len({*specs.values()}) == len(specs)
    assert [claim.variant for claim in study.CLAIMS] == [*study.VARIANTS][1:]


@pytest.mark.slow
def test_activation_study_writes_results(tmp_path, capsys):
    arguments = ["--depth=8", "--epochs=1", "--seeds=2", "--batch_size=512"]
    cli.main(["activation", f"--out={tmp_path}", *arguments])
    result = json.loads((tmp_path / "activation.json").read_text())
    assert {*result["variants"]} == {*activation.VARIANTS} == {*result["curves"]}
    assert np.shape(result["curves"][ORIGINAL]["test"]) == (1, 2, 1)
    assert result["verdict"] in capsys.readouterr().out
    with Image.open(tmp_path / "activation.png") as image:
        assert image.size[0] > 800
