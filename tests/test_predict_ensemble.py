"""`resflax predict` with an ensemble: mean probabilities, and how far the members differ."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import run_command
from helpers.networks import apply
from helpers.workdirs import CLASSES, CONFIG, SavedStep, write_workdir
from PIL import Image

from resflax import load_pretrained
from resflax.cli.output_files import COLUMNS, ENSEMBLE_COLUMNS

FACTORS = np.float32([1, 0.9, 1.05])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An ensemble of three, a single run, and images."""
    root = tmp_path_factory.mktemp("predict")
    ensemble = {"size": 3, "seeds": [0, 1, 2], "dropped": []}
    write_workdir(root / "e", SavedStep(10), factors=FACTORS, metadata={"ensemble": ensemble})
    write_workdir(root / "x", SavedStep(3))
    (root / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(root / "photos" / f"{i}.png")
    return root


@pytest.fixture(autouse=True)
def working_directory(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def paths_of(root):
    return [str(root / "photos" / f"{i}.png") for i in range(5)]


def member_probabilities(wheres, paths):
    """Returns `(members, n, classes)` probabilities of `model.apply`, in float64."""
    found = []
    for where in wheres:
        model, variables, preprocess, *_ = load_pretrained(where)
        images = np.stack([preprocess(path) for path in paths])
        exponentials = np.exp(np.asarray(apply(model, variables, images), np.float64))
        found.append(exponentials / exponentials.sum(1, keepdims=True))
    return np.array(found)


def expected_uncertainty(p):
    """Returns mutual information and the number of members that agree, by their definitions."""
    mean = p.mean(0)
    entropies = -(p * np.log(p)).sum(-1)
    information = -(mean * np.log(mean)).sum(-1) - entropies.mean(0)
    return information, (p.argmax(-1) == mean.argmax(-1)).sum(0)


@pytest.fixture(scope="module")
def probabilities(root):
    return member_probabilities([f"{root}/e#{i}" for i in range(3)], paths_of(root))


def test_json_lines_have_mean_probabilities_and_uncertainty(root, probabilities, capsys):
    assert run_command("predict", f"{root}/photos", f"--weights={root}/e", "--out=p.jsonl") == 0
    assert capsys.readouterr().out.startswith(f"ensemble of 3 networks: {root}/e#0, {root}/e#1, ")
    objects = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert [o["path"] for o in objects] == paths_of(root)
    mean, (information, agreeing) = probabilities.mean(0), expected_uncertainty(probabilities)
    for i, found in enumerate(objects):
        best = np.argsort(-mean[i])[:5]
        assert [p["label"] for p in found["predictions"]] == best.tolist()
        assert [p["class"] for p in found["predictions"]] == [CLASSES[label] for label in best]
        values = [p["probability"] for p in found["predictions"]]
        np.testing.assert_allclose(values, mean[i][best], atol=1e-5)
        assert found["mutual_information"] == pytest.approx(information[i], abs=1e-4)
        assert (found["agreeing_members"], found["members"]) == (agreeing[i], 3)


def test_csv_and_parquet_have_the_same_rows(root, probabilities):
    arguments = [f"{root}/photos", f"--weights={root}/e", "--top=2", "--batch-size=2"]
    assert run_command("predict", *arguments, "--out=p.csv") == 0
    with open("p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == (*COLUMNS, *ENSEMBLE_COLUMNS)
    assert [(r["path"], r["rank"]) for r in rows] == [
        (path, rank) for path in paths_of(root) for rank in "12"
    ]
    information, agreeing = expected_uncertainty(probabilities)
    found = [float(row["mutual_information"]) for row in rows[::2]]
    np.testing.assert_allclose(found, information, atol=1e-4)
    assert [int(row["agreeing_members"]) for row in rows[::2]] == agreeing.tolist()
    pq = pytest.importorskip("pyarrow.parquet")
    assert run_command("predict", *arguments, "--out=p.parquet") == 0
    table = pq.read_table("p.parquet")
    assert table.column_names == [*rows[0]]
    for row, values in zip(rows, table.to_pylist(), strict=True):
        assert (row["path"], row["class"]) == (values["path"], values["class"])
        for column in ("rank", "label", "agreeing_members", "members"):
            assert int(row[column]) == values[column]
        for column in ("probability", "mutual_information"):
            assert float(row[column]) == pytest.approx(values[column], rel=1e-6)


def test_parquet_of_one_network_has_no_uncertainty(root):
    pq = pytest.importorskip("pyarrow.parquet")
    assert run_command("predict", f"{root}/photos", f"--weights={root}/e#1", "--out=p.parquet") == 0
    table = pq.read_table("p.parquet")
    assert table.column_names == [*COLUMNS]
    assert len(table) == 5 * 5


def test_table_says_how_many_members_agree(root, probabilities, capsys):
    information, agreeing = expected_uncertainty(probabilities)
    notes = [
        f"{count} of 3 members agree, mutual information {value:.3f} nats"
        for count, value in zip(agreeing, information, strict=True)
    ]
    assert run_command("predict", *paths_of(root), f"--weights={root}/e", "--sheet=s.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines if "members agree" in line] == notes
    assert Path("s.png").exists()
    many = [*paths_of(root), *paths_of(root), paths_of(root)[0]]
    assert run_command("predict", *many, f"--weights={root}/e") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "members agree" in line]
    assert len(lines) == 11
    assert lines[0].endswith(f"  ({notes[0]})")


def test_repeated_weights_are_the_members_of_an_ensemble(root):
    weights = [f"--weights={root}/x", f"--weights={root}/e#0"]
    assert run_command("predict", f"{root}/photos", *weights, "--out=p.jsonl", "--top=1") == 0
    objects = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    p = member_probabilities([f"{root}/x", f"{root}/e#0"], paths_of(root))
    best = [o["predictions"][0] for o in objects]
    assert [b["label"] for b in best] == p.mean(0).argmax(1).tolist()
    np.testing.assert_allclose([b["probability"] for b in best], p.mean(0).max(1), atol=1e-5)
    assert {o["members"] for o in objects} == {2}


def test_members_can_normalize_images_differently(root, tmp_path):
    other = replace(CONFIG.preprocess, mean=(0.5,), std=(0.5,))
    write_workdir(tmp_path / "z", SavedStep(3), config=CONFIG._replace(preprocess=other))
    wheres = [f"{root}/x", f"{tmp_path}/z"]
    weights = [f"--weights={where}" for where in wheres]
    assert run_command("predict", f"{root}/photos", *weights, "--out=p.jsonl", "--top=1") == 0
    objects = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    p = member_probabilities(wheres, paths_of(root))
    assert np.abs(p[0] - p[1]).max() > 0.01  # equal weights
    found = [o["predictions"][0]["probability"] for o in objects]
    np.testing.assert_allclose(found, p.mean(0).max(1), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights={0}/e#5"], "e has no member 5: expected an index from 0 to 2"),
        (["--weights={0}/x#0"], "x is a run of one network, and # chooses members"),
        (["--weights={0}/e", "--weights={0}/e#1"], "e#1 is given twice: expected each network"),
        (
            ["--weights={0}/e", "--features=f.npz"],
            "--features needs one network, and --weights has 3: name one, such as",
        ),
    ],
)
def test_invalid_ensemble_is_one_line(root, capsys, arguments, message):
    words = [argument.format(root) for argument in arguments]
    assert run_command("predict", f"{root}/photos", *words) == 2
    error = capsys.readouterr().err
    assert message.format(root) in error
    assert error.count("\n") == 1
    assert [*Path().iterdir()] == []
