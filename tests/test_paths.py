"""Paths that users give: `~` is expanded, URLs are refused before anything is written."""

import os
import shutil
from pathlib import Path

import pytest

from resflax import UserError, load_pretrained
from resflax.cli.main import main
from resflax.data import load_dataset, load_split
from resflax.files import expand_path, user_path
from resflax.run.workdir import Workdir
from resflax.train import default_config, fit
from resflax.weights import load_file, save_file

URLS = ("gs://bucket/x", "s3://bucket/x", "file:///x", "https://host/x", "hdfs://host:8020/x")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home directory; the current directory is another empty one."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


@pytest.mark.parametrize("url", [*URLS, "gs:/bucket/x"])  # `Path` drops a slash
def test_urls_are_refused(url):
    for given in (url, Path(url)):
        with pytest.raises(UserError, match=r"--out '\w+:/.*' is a URL: expected a path on this"):
            user_path(given, "--out")


@pytest.mark.parametrize(
    "given", ["runs/a", "/a/b", "./gs:/a", "a~", "a/~/b", "C:/a", "a b:c", "timm/resnet50", ""]
)
def test_local_paths_are_unchanged(given, home):
    assert expand_path(given) == given


def test_home_is_expanded(home):
    assert user_path("~/a") == home / "a"
    assert user_path(Path("~")) == home


def test_home_of_another_user_is_expanded(monkeypatch):
    pwd = pytest.importorskip("pwd")
    user = pwd.getpwuid(os.getuid())
    monkeypatch.setenv("HOME", "/elsewhere")
    assert user_path(f"~{user.pw_name}/a") == Path(user.pw_dir, "a")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("~nobody_here/a", "cannot be expanded, since there is no user 'nobody_here': give the"),
        ("$HOME/a", r"begins with a variable, which is not expanded here.*; ./\$HOME/a is a local"),
        ("${SCRATCH}/a", "begins with a variable"),
    ],
)
def test_names_that_the_shell_would_expand_are_refused(given, message, home):
    with pytest.raises(UserError, match=message):
        user_path(given)
    (home.parent / "work" / given.split("/")[0]).mkdir()  # a folder of this name exists
    assert user_path(given) == Path(given)


FOLDER = "--config.dataset=folder:"
COMMANDS = {
    "train_workdir": ["train", "--workdir={}"],
    "train_data": ["train", FOLDER + "{}"],
    "train_data_dir": ["train", "--config.dataset=mnist", "--config.data.data_dir={}"],
    "train_dataset": ["train", "--config.dataset={}"],
    "train_recipe": ["train", "--config={}/a.py"],
    "train_pretrained": ["train", "--config.model=", "--config.pretrained={}"],
    "evaluate_where": ["evaluate", "{}"],
    "evaluate_out": ["evaluate", "run", "--out={}"],
    "evaluate_predictions": ["evaluate", "run", "--predictions={}/a.csv"],
    "evaluate_data_dir": ["evaluate", "run", "--data-dir={}"],
    "predict_images": ["predict", "{}/a.png", "--weights=resnet18.a1_in1k"],
    "predict_weights": ["predict", ".", "--weights={}"],
    "predict_out": ["predict", ".", "--weights=run", "--out={}/a.csv"],
    "predict_features": ["predict", ".", "--weights=run", "--features={}/a.npz"],
    "export_where": ["export", "{}", "out"],
    "export_out": ["export", "run", "{}"],
    "convert_in": ["convert", "{}/a.safetensors", "b.safetensors"],
    "convert_out": ["convert", "a.safetensors", "{}/b.safetensors"],
    "average_out": ["average", "a", "b", "--out={}"],
    "probe_out": ["probe", "run", "--dataset=digits", "--out={}"],
    "probe_where": ["probe", "{}", "--dataset=digits"],
    "study_out": ["study", "gradients", "--out={}"],
    "show_out": ["data", "show", "--config=configs/digits.py", "--out={}/a.png"],
    "prepare_dir": ["data", "prepare", "mnist", "--data_dir={}"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("place", ["gs://bucket/x", "~nobody_here/x"])
def test_commands_refuse_remote_paths_before_they_write(words, place, home, capfd):
    assert main([word.format(place) for word in words]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert ("is a URL" if "://" in place else "there is no user") in err
    assert not [*home.parent.rglob("work/*")]


CALLS = {
    "fit": lambda path: fit(default_config(), path, silent=True),
    "Workdir.open": lambda path: Workdir.open(path, {}),
    "Workdir.inspect": lambda path: Workdir.inspect(path, {}),
    "load_pretrained": load_pretrained,
    "load_dataset": lambda path: load_dataset(f"folder:{path}"),
    "load_dataset, data_dir": lambda path: load_dataset("mnist", str(path)),
    "load_split": lambda path: load_split(f"folder:{path}"),
    "load_file": load_file,
    "save_file": lambda path: save_file(path, {}),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("url", ["s3://bucket/x.pth", Path("gs://bucket/x.pth")])
def test_functions_refuse_urls(call, url, home):
    with pytest.raises(UserError, match="is a URL"):
        call(url)
    assert not [*home.parent.rglob("work/*")]


def test_commands_write_and_read_below_home(home, capsys, tmp_path):
    config = Path(__file__).parents[1] / "configs" / "digits.py"
    shutil.copy(config, home / "recipe.py")
    words = ["--config=~/recipe.py", "--config.data.pad_crop=0"]
    assert main(["data", "show", *words, "--out=~/a.png"]) == 0
    assert {p.name for p in home.iterdir() if p.suffix} == {"recipe.py", "a.png"}
    assert main(["predict", "~/a.png", "--weights=~/none.safetensors"]) == 2
    assert f"file not found: {home}/none.safetensors" in capsys.readouterr().err
    assert not [*Path().iterdir()]
