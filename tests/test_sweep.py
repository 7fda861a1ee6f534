"""`resflax sweep`: its grid, which runs are one ensemble, its table, and how it resumes."""

import json

import numpy as np
import pytest
from helpers.commands import run_command
from hypothesis import given
from hypothesis import strategies as st

from resflax import UserError
from resflax.cli import sweep_jobs
from resflax.cli.flags import parse
from resflax.cli.grid import combinations, parse_grid
from resflax.cli.sweep_jobs import SweepRun, plan_jobs
from resflax.cli.sweep_table import best_setting, summarize
from resflax.run.config_diff import flatten_config
from resflax.run.signals import InterruptedRunError
from resflax.train import check_config, default_config
from resflax.train.config import to_json_dict
from resflax.train.ensemble import join_configs, member_config, member_seeds
from resflax.train.monitor import DivergedError

SMALL = ["--config.model=cifar_resnet8", "--config.epochs=1", "--config.batch_size=240"]


def plan(grid, *arguments, members=8):
    def config_of(texts):
        return parse([*arguments, *(f"--config.{k}={v}" for k, v in texts.items())]).config

    runs = [SweepRun(texts, config_of(texts)) for texts in combinations(parse_grid(grid))]
    return plan_jobs(runs, members)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--grid is '': expected such as 'learning_rate=0.05,0.1;seed=0..4'"),
        ("seed", "--grid has 'seed': expected KEY=VALUE,VALUE"),
        ("seed=", "--grid has 'seed=': expected KEY=VALUE,VALUE"),
        ("seed=1;seed=2", "--grid has config.seed twice"),
        ("seed=1,2,1", "--grid has the value 1 of config.seed twice"),
        ("seed=0..3,2", "--grid has the value 2 of config.seed twice"),
        ("seed=4..2", "--grid has 4..2: expected FIRST..LAST"),
        ("seed=0..99999", "--grid has 0..99999: expected FIRST..LAST"),
    ],
)
def test_invalid_grid_is_refused(text, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        parse_grid(text)


@given(st.integers(-50, 50), st.integers(0, 20))
def test_grid_ranges_are_inclusive(first, length):
    grid = parse_grid(f"seed={first}..{first + length}; config.model=a,b")
    assert grid == {"seed": [*map(str, range(first, first + length + 1))], "model": ["a", "b"]}
    assert len([*combinations(grid)]) == 2 * (length + 1)


@pytest.mark.parametrize(
    ("grid", "arguments", "sizes"),
    [
        ("learning_rate=0.05,0.1;seed=0..2", [], [6]),
        ("optimizer=sgd,adamw;seed=0..2", [], [3, 3]),
        ("batch_size=48,96", [], [1, 1]),
        ("spec.drop_path=0.0,0.1;weight_decay=0.0,0.1;label_smoothing=0.0,0.1", [], [8]),
        ("data.mixup=0.0,0.2;seed=0,1", [], [4]),
        ("seed=0..9", [], [8, 2]),
        ("seed=0..1", ["--config.dataset=fake:8x8x1:10:480"], [1, 1]),  # the noise is another
        ("seed=0,1", ["--config.ensemble.size=2"], [1, 1]),
        ("learning_rate=0.1,0.2", ["--config.head_learning_rate=0.5"], [1, 1]),
    ],
)
def test_runs_are_joined_where_shapes_agree(grid, arguments, sizes):
    jobs = plan(grid, *SMALL, *arguments)
    assert [len(job.texts) for job in jobs] == sizes
    assert len({job.name for job in jobs}) == len(jobs)
    for job in jobs:
        check_config(job.config)


def test_joined_runs_are_the_members_of_their_ensemble():
    [job] = plan("learning_rate=0.05,0.1;weight_decay=0.0,0.001;seed=3..4", *SMALL)
    assert member_seeds(job.config) == (3, 4) * 4
    for k, texts in enumerate(job.texts):
        alone = parse([*SMALL, *(f"--config.{key}={v}" for key, v in texts.items())]).config
        assert to_json_dict(member_config(job.config, k)) == to_json_dict(alone)


def test_join_configs_refuses_runs_that_differ_otherwise():
    a, b = default_config(), default_config()
    b.batch_size = 64
    assert join_configs([a, b]) is None
    b = default_config()
    b.seed = 5
    joined = join_configs([a, b])
    assert joined.ensemble.seeds == (0, 5)
    assert flatten_config(member_config(joined, 1)) == flatten_config(b)


ENSEMBLE_ACCURACY = 0.75


class FakeFit:
    """Writes the files of runs whose accuracy is a function of their learning rate and seed."""

    def __init__(self):
        self.paths, self.interrupt_at, self.diverging_rate = [], None, None

    def __call__(self, config, workdir, *, interrupt, silent):
        self.paths.append(workdir.name)
        if len(self.paths) == self.interrupt_at:
            raise InterruptedRunError(15, "the run's own message")
        size = config.ensemble.size
        members = [member_config(config, k) if size > 1 else config for k in range(size)]
        accuracy = [float(m.learning_rate + 0.01 * m.seed) for m in members]
        record = {"step": 6, "epoch": 1.0, "split": "test", "loss": 1.0, "accuracy": accuracy[0]}
        if size > 1:
            record["accuracy"] = ENSEMBLE_ACCURACY
            record["members"] = {"accuracy": accuracy, "loss": [1.0] * size}
        workdir.mkdir(parents=True)
        (workdir / "config.json").write_text(json.dumps(to_json_dict(config)))
        (workdir / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        diverged = [6 * (m.learning_rate == self.diverging_rate) for m in members]
        if all(diverged):
            raise DivergedError("not finite", diverged)
        return {"members": [{"diverged_at": step} if step else {} for step in diverged]}


@pytest.fixture
def fake_fit(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    fake = FakeFit()
    monkeypatch.setattr(sweep_jobs, "fit", fake)
    return fake


GRID = "--grid=learning_rate=0.05,0.1;seed=0..2"


@pytest.mark.parametrize("members", [1, 4, 8])
def test_table_has_mean_and_std_over_seeds(members, fake_fit, capsys):
    assert run_command("sweep", *SMALL, GRID, f"--members={members}") == 0
    output = capsys.readouterr().out
    for rate in (0.05, 0.1):
        values = rate + 0.01 * np.arange(3)
        row = f"learning_rate={rate}"
        [line] = [line for line in output.splitlines() if line.startswith(row)]
        expected = [row, "3", f"{values.mean():.4f}", "+-", f"{values.std(ddof=1):.4f}"]
        assert line.split()[:5] == expected
    assert output.splitlines()[-1] == " ".join(
        ["resflax train", *SMALL, "--config.learning_rate=0.1"]
    )
    assert "best: test accuracy 0.1100 +- 0.0100, which is optimistic" in output
    assert len(fake_fit.paths) == {1: 6, 4: 2, 8: 1}[members]


def test_json_has_rows_and_summary(fake_fit, capsys):
    assert run_command("sweep", *SMALL, GRID, "--json", "--out=out") == 0
    values = json.loads(capsys.readouterr().out)
    assert [row["where"] for row in values["rows"]] == [f"out/000-6-members#{k}" for k in range(6)]
    assert values["rows"][4]["texts"] == {"learning_rate": "0.1", "seed": "1"}
    assert values["rows"][4]["test_accuracy"] == pytest.approx(0.11)
    assert values["summary"][1]["test_accuracy_std"] == pytest.approx(0.01)


def test_ensembles_of_a_sweep_have_the_accuracy_of_all_members(fake_fit, capsys):
    ensemble = ["--config.ensemble.size=2", "--grid=momentum=0.8,0.7"]
    assert run_command("sweep", *SMALL, *ensemble, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["test_accuracy"] for row in rows] == [ENSEMBLE_ACCURACY] * 2


def test_best_command_has_the_keys_of_the_grid_once(fake_fit, capsys):
    given = ["--config.learning_rate=0.3", "--config.momentum", "0.5"]
    assert run_command("sweep", *SMALL, *given, GRID) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    expected = ["resflax", "train", *SMALL, *given[1:], "--config.learning_rate=0.1"]
    assert line.split() == expected


def test_stopped_sweep_resumes_with_the_missing_runs(fake_fit, tmp_path, capsys):
    fake_fit.interrupt_at = 3
    command = ["sweep", *SMALL, GRID, "--members=1", "--out=out"]
    assert run_command(*command) == 143
    assert "stopped: the same command with --out=out resumes" in capsys.readouterr().out
    assert not (tmp_path / "out" / "sweep.json").exists()
    stopped, fake_fit.interrupt_at = fake_fit.paths[:], None
    assert run_command(*command) == 0
    assert fake_fit.paths[3:] == [stopped[2], *fake_fit.paths[4:]]
    assert len(fake_fit.paths) == 3 + 4
    again = [p for p in fake_fit.paths]
    assert run_command(*command) == 0
    assert fake_fit.paths == again
    assert "6 of 6: 005-learning_rate=0.1-seed=2, finished before" in capsys.readouterr().out


def test_other_grid_in_the_same_folder_is_refused(fake_fit, capsys):
    assert run_command("sweep", *SMALL, "--grid=seed=0..1", "--out=out") == 0
    assert run_command("sweep", *SMALL, "--grid=seed=0..2", "--out=out") == 2
    assert "grid 'seed=0..1', now 'seed=0..2'): choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize("members", [1, 8])
def test_diverged_runs_are_counted_and_not_best(members, fake_fit, capsys):
    fake_fit.diverging_rate = 0.1
    assert run_command("sweep", *SMALL, GRID, f"--members={members}") == 0
    lines = capsys.readouterr().out.splitlines()
    [line] = [line for line in lines if line.startswith("learning_rate=0.1")]
    assert line.split() == ["learning_rate=0.1", "3", "-", "-", "3"]
    assert lines[-1].endswith("--config.learning_rate=0.05")


def test_dry_run_lists_all_runs_and_writes_nothing(fake_fit, tmp_path, capsys):
    assert run_command("sweep", *SMALL, "--grid=optimizer=sgd,adamw;seed=0,1", "--dry-run") == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "4 runs as 2 programs"
    assert lines[0] == "000-optimizer=sgd-2-members"
    flags = " ".join(SMALL)
    assert lines[2] == f"  resflax train {flags} --config.optimizer=sgd --config.seed=1"
    assert len(lines) == 6
    assert not fake_fit.paths
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid=seeed=1,2"], "seeed"),
        (["--grid=learning_rate=0.1,-1"], "config.learning_rate is -1.0: expected more than 0"),
        (["--grid=seed=0,a"], "config.seed is 'a': expected an integer"),
        (["--grid=learning_rate=0.1,1e-1"], "has the values 0.1 and 1e-1 of config.learning_rate"),
        (["--grid=momentum=0.9,0.8;seed=0,00"], "the values 0 and 00 of config.seed, which are eq"),
        (
            ["--grid=batch_size=5000,48"],
            "batch_size=5000: batch_size 5000 is larger than",
        ),
        (["--grid=seed=0,1", "--workdir=a"], "expected --out for the folder of a sweep"),
        (["--grid=seed=0,1", "--resume=never"], "expected another --out for a new sweep"),
        (["--grid=seed=0,1", "--members=0"], "--members is 0: expected 1 to 1024"),
        (["--grid=seed=0..999;data.validation_seed=0..99"], "--grid has 100000 runs: expected at"),
        ([], "the following arguments are required: --grid"),
    ],
)
def test_invalid_arguments_are_one_line(arguments, message, fake_fit, tmp_path, capsys):
    assert run_command("sweep", *SMALL, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_validation_split_chooses_the_best_setting():
    def row(rate, validation, test):
        figures = {"validation_accuracy": validation, "test_accuracy": test}
        return {"texts": {"learning_rate": rate}, "diverged_at": 0, **figures}

    summary = summarize([row("0.1", 0.5, 0.9), row("0.2", 0.6, 0.1)])
    best, split = best_setting(summary)
    assert (best["texts"], split) == ({"learning_rate": "0.2"}, "validation")
    assert best["test_accuracy_std"] is None


@pytest.mark.slow
def test_ensemble_and_single_runs_have_the_same_figures(tmp_path, capsys, monkeypatch):
    """Trains four networks in one program, and one after another."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for members in (1, 4):
        command = ["sweep", *SMALL, "--grid=learning_rate=0.01,0.02;seed=0,1", "--json"]
        assert run_command(*command, f"--members={members}", f"--out=out{members}") == 0
        rows.append(json.loads(capsys.readouterr().out)["rows"])
    for alone, joined in zip(*rows, strict=True):
        assert alone["texts"] == joined["texts"]
        assert joined["test_loss"] == pytest.approx(alone["test_loss"], rel=1e-3)
        assert joined["test_accuracy"] == pytest.approx(alone["test_accuracy"], abs=0.01)
    assert run_command("compare", "out1/000-learning_rate=0.01-seed=0", "out4/000-4-members") == 0
