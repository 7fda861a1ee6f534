"""Values of config keys on the command line: each invalid text is one line before any compute."""

import ast
import re
from pathlib import Path

import jax.monitoring
import pytest
from helpers.commands import run_train

from resflax import UserError
from resflax.cli.config_values import KINDS, LIST_EXAMPLES, _kinds, set_values
from resflax.cli.flags import parse
from resflax.cli.recipe import load_recipe
from resflax.train.config import default_config

ROOT = Path(__file__).parents[1]
TYPES = dict(_kinds(default_config()))
LISTS = [key for key, kind in TYPES.items() if kind is tuple]
NOT_LISTS = [
    "{1: 0.1, 2: 0.2}", "{0.1, 0.2}", "{}", "set()", "ab", "a, b", "(0.1", "(0.1,float('nan'))",
    "(0.1, nan)", "True", "'ab'", "b'ab'", "None", "1+2j", "", " ", "[x for x in (1, 2)]",
    "(0.1)(0.2)", "\0", "(" * 70,
]  # fmt: skip

# Arguments, and a regular expression for the error.
ARGUMENTS = {
    "fraction of a member": (
        ["ensemble.size=1.5"],
        "config.ensemble.size is '1.5': expected an integer, 1 to 1024$",
    ),
    "size in words": (["ensemble.size=two"], "config.ensemble.size is 'two': expected an integer"),
    "no size": (["ensemble.size="], "config.ensemble.size is '': expected an integer, 1 to 1024$"),
    "flag without its value": (
        ["ensemble.size"],
        "--config.ensemble.size has no value: expected --config.ensemble.size=VALUE, an integer",
    ),
    "undecided": (
        ["ensemble.share_init=maybe"],
        "config.ensemble.share_init is 'maybe': expected true or false$",
    ),
    "rate in words": (
        ["learning_rate=fast"],
        "config.learning_rate is 'fast': expected a number, more than 0$",
    ),
    "list for a number": (
        ["learning_rate=(0.1, 0.2)"],
        "config.learning_rate is '\\(0.1, 0.2\\)': expected a number, more than 0$",
    ),
    "NaN": (["learning_rate=nan"], "config.learning_rate is nan: expected a number in the range"),
    "group": (
        ["ensemble=5"],
        "config.ensemble is a group of keys: did you mean config.ensemble.size",
    ),
    "group as a dict": (
        ["mesh={'fsdp': 2}"],
        "config.mesh is a group of keys: set one, such as config.mesh.fsdp",
    ),
    "element": (["decay_epochs[0]=3"], "unknown config key 'config.decay_epochs\\[0\\]'"),
    "text in a list of numbers": (
        ["ensemble.size=2", "ensemble.learning_rate=('a', 'b')"],
        "config.ensemble.learning_rate\\[0\\] is 'a': expected a number",
    ),
    "list in a list": (
        ["ensemble.size=2", "ensemble.learning_rate=((0.1,), (0.2,))"],
        "config.ensemble.learning_rate\\[0\\] is \\(0.1,\\): expected a number",
    ),
    "bools for rates": (
        ["ensemble.size=2", "ensemble.learning_rate=(True, True)"],
        "config.ensemble.learning_rate\\[0\\] is True: expected a number",
    ),
    "infinite rate": (
        ["ensemble.size=2", "ensemble.learning_rate=(0.1, 1e999)"],
        "config.ensemble.learning_rate\\[1\\] is inf: expected a number in the range of float32",
    ),
    "fractional seeds": (
        ["ensemble.size=2", "ensemble.seeds=(0.5, 1)"],
        "config.ensemble.seeds\\[0\\] is 0.5: expected an integer",
    ),
    "one value for two members": (
        ["ensemble.size=2", "ensemble.learning_rate=(0.1,)"],
        "config.ensemble.learning_rate has 1 value, \\(0.1,\\), but config.ensemble.size is 2",
    ),
    "text for the mean": (["data.mean=('a',)"], "config.data.mean is \\('a',\\): expected numbers"),
    "dict of patterns": (
        ["freeze={'stem*': 1}"],
        "config.freeze is \"{'stem\\*': 1}\": expected a text or a list of texts$",
    ),
    "fsdp of members under pmap": (
        ["mesh.fsdp=2", "parallel=pmap", "ensemble.size=2"],
        "config.mesh.fsdp is 2 with config.ensemble.size=2, .*: expected 1$",
    ),
    "fsdp of members on a mesh": (
        ["mesh.fsdp=2", "parallel=mesh", "ensemble.size=2"],
        "config.mesh.fsdp is 2 with config.ensemble.size=2, .*: expected 1$",
    ),
    "devices of members": (
        ["ensemble.size=3", "ensemble.member_devices=2"],
        "config.ensemble.member_devices is 2: 3 members on 8 devices need 1 \\(0 chooses 1\\)$",
    ),
}


@pytest.fixture
def compiled():
    """Names of the events of XLA's compiler."""
    events = []

    def listen(event, duration, **fields):
        if "compile" in event and "trace" not in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def assert_refused(arguments, message, capsys, path):
    """Runs the command; asserts status 2, one line, and that nothing was written."""
    status = run_train(*arguments, f"--workdir={path}/run")
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert re.match(f"error: {message}", err.rstrip("\n")), err
    assert list(path.iterdir()) == []


@pytest.mark.parametrize("case", ARGUMENTS)
def test_invalid_value_is_one_line(case, monkeypatch, capsys, tmp_path, compiled):
    values, message = ARGUMENTS[case]
    monkeypatch.chdir(ROOT)
    assert_refused([f"--config.{value}" for value in values], message, capsys, tmp_path)
    assert compiled == []


@pytest.mark.parametrize("key", LISTS)
def test_list_must_be_a_tuple_or_list(key, monkeypatch, capsys, tmp_path, compiled):
    monkeypatch.chdir(ROOT)
    for text in NOT_LISTS:
        expected = re.escape(f"config.{key} is {text!r}: expected a list such as ") + r"\d"
        arguments = ["--config.ensemble.size=2", f"--config.{key}={text}"]
        assert_refused(arguments, expected, capsys, tmp_path)
    assert compiled == []


@pytest.mark.parametrize("text", ["(0.1, 0.2)", "[0.1, 0.2]", "0.1, 0.2", "(0.1,0.2,)"])
def test_tuples_and_lists_give_the_same_values(text):
    command = parse([f"--config.ensemble.learning_rate={text}"])
    assert command.config.ensemble.learning_rate == (0.1, 0.2)


def test_examples_of_lists_are_lists():
    assert set(LIST_EXAMPLES) <= set(LISTS)
    for key, example in LIST_EXAMPLES.items():
        assert isinstance(ast.literal_eval(example), tuple), key


def test_values_of_every_type_can_be_set():
    assert set(TYPES.values()) <= set(KINDS)
    words = [
        "--config.seed", "-3", "-config.model=a=b", "--config.scan=True", "--config.data.flip",
        "--noconfig.nesterov", "--config.epochs=5", "--config.learning_rate", "1", "--workdir=x",
        "--config.decay_epochs=()", "--config.spec.depths=[1, 2]", "--config.freeze=('stem*',)",
        "--config.epochs=7", "--config.spec.dropout=0.5", "--config.data.data_dir=",
    ]  # fmt: skip
    command = parse(words)
    config = command.config
    assert (config.seed, config.model, config.scan, config.data.flip) == (-3, "a=b", True, True)
    assert (config.nesterov, config.learning_rate, config.epochs) == (False, 1.0, 7)
    assert (config.decay_epochs, config.spec.depths, config.spec.dropout) == ((), (1, 2), 0.5)
    assert (config.freeze, config.data.data_dir, command.workdir) == (("stem*",), "", "x")
    assert parse(["--config.decay_epochs=30"]).config.decay_epochs == (30,)
    assert parse(["--config.freeze=stem*,head"]).config.freeze == "stem*,head"


def test_long_text_is_shortened_in_the_error():
    with pytest.raises(UserError, match=r"epochs is '9{80}'\.\.\.: expected an integer"):
        set_values(default_config(), {"epochs": "9" * 10_000})


def test_recipe_that_returns_no_config_is_one_line(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("def get_config(): return {}")
    with pytest.raises(UserError, match="get_config returns dict: expected a ConfigDict"):
        load_recipe(str(recipe))
