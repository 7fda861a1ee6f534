"""Commands in README.md and the pages of docs/ parse: flags, config keys, values, recipes, extras.

The shell itself splits them into words, with stubs instead of programs. The functions of the
commands are called up to where they would begin to work.
"""

import contextlib
import importlib
import re
import subprocess
import tomllib

import pytest
from helpers.pages import PAGES as DOCS_PAGES
from helpers.pages import README, ROOT

from resflax.cli.main import main
from resflax.distributed import DistributedConfig
from resflax.errors import Parser
from resflax.train import default_config

PAGES = [README, ROOT / "CONTRIBUTING.md", *DOCS_PAGES]
# Shell blocks: fenced, or indented with a program as the first word.
FENCED = re.compile(r"^( *)```(?:sh|bash)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"\n\n((?: {4}.*\n)+)")
PROGRAM = re.compile(r" {4}(resflax|python|pip|git)\b")
# Commands with arguments in a text; without, they are names of commands.
NAMED = r"resflax (?!data \w+`)\w+|python (?:train\.py|-m \S+)"
INLINE = re.compile(rf"(?<!`)`((?:[A-Z_]+=\S+ )?(?:{NAMED})\s[^`]+)`(?!`)")
# Without a PATH, the shell calls this function for every program; it prints the words.
STUB = (
    'exec 9>&1; command_not_found_handle() { printf -v words "%s\\037" "$@"; '
    # One write: the programs of a pipe print at the same time.
    'printf "%s\\036" "$words" >&9; }\n'
    "cd() { :; }; .() { :; }; PATH=/-\n"
)
# Where commands begin to work, after they parsed their arguments.
STARTS = (
    "resflax.train.fit",
    "resflax.cli.data.show_batch",
    "resflax.cli.doctor.make_virtual_devices",
    "resflax.cli.sweep.plan_jobs",
    "resflax.plan.topologies.check_compiler",
)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


class ParsedError(Exception):
    """Raised where a command would begin to work."""


def stop(*args, **kwargs):
    raise ParsedError


def stop_after(method):
    def parse_and_stop(*args, **kwargs):
        method(*args, **kwargs)
        raise ParsedError

    return parse_and_stop


@pytest.fixture(autouse=True)
def stops(monkeypatch):
    """Stops commands before they begin to work; relative paths are those of a checkout."""
    for name in STARTS:
        monkeypatch.setattr(name, stop)
    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(Parser, name, stop_after(getattr(Parser, name)))
    monkeypatch.setattr(DistributedConfig, "initialize", lambda self: None)
    monkeypatch.setattr("resflax.runtime.enable_compilation_cache", lambda: None)
    monkeypatch.setattr("resflax.cli.plan.compile_for_topologies", lambda: None)
    monkeypatch.setattr("benchmarks.trainers.measure", lambda _, arguments: train(arguments))
    # Without a recipe, it is chosen for a dataset that is not there.
    monkeypatch.setattr("resflax.cli.flags.find_recipe_of", lambda *_: (default_config(), ()))
    monkeypatch.chdir(ROOT)


def programs(script, folder):
    """Returns the words of each program that a shell script would run, also by ssh."""
    done = subprocess.run(
        ["/bin/bash", "-c", STUB + script.replace("…", "URL")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line.split("\037")[:-1] for line in done.stdout.split("\036")[:-1]]
    inner = [word.removeprefix("--command=") for words in found for word in words if "&&" in word]
    return found + [words for text in inner for words in programs(text, folder)]


def shell_blocks(text):
    indented = [block for block in INDENTED.findall(text) if PROGRAM.match(block)]
    inline = [" ".join(command.split("\n")) for command in INLINE.findall(text)]
    return [block for _, block in FENCED.findall(text)] + indented + inline


def arguments_of(words):
    """Returns what runs a program of this project and its arguments, or None for others."""
    text = " ".join(words)
    for pattern, function in (
        (r"resflax |python -m resflax ", main),
        (r"(?:[^-].* )?python train\.py|python -m benchmarks\.torch_trainer", train),
    ):
        if match := re.match(pattern, f"{text} "):
            count = len(match[0].split())
            return function, words[count:]
    if match := re.match(r"python -m (benchmarks(?:\.\w+)?)", text):
        name = "benchmarks.cli" if match[1] == "benchmarks" else match[1]
        return importlib.import_module(name).main, words[3:]
    return None


def train(arguments):
    return main(["train", *arguments])


def check(words):
    """Raises an error if a program would not accept its arguments; returns whether it is known."""
    if words[:2] == ["pip", "install"]:
        extras = re.findall(r"(?:resflax|\.)\[([\w,-]+)\]", " ".join(words))
        assert {name for extra in extras for name in extra.split(",")} <= set(EXTRAS)
    if (found := arguments_of(words)) is None:
        return False
    function, arguments = found
    with contextlib.suppress(ParsedError):
        assert not function(arguments), words
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_page_parse(page, tmp_path):
    blocks = shell_blocks(page.read_text())
    known = [check(words) for words in programs("\n".join(blocks), tmp_path)]
    mentioned = re.findall(r"(?m)^\s*(resflax|python train\.py) ", "\n".join(blocks))
    assert sum(known) >= len(mentioned)


@pytest.mark.parametrize(
    "line",
    [
        "resflax trian --config=configs/digits.py",
        "python train.py --config=configs/digit.py",
        "for i in 1; do\n  srun python train.py --config.learning_rates=$i; done",
        "resflax evaluate runs/digits --conformel=0.1 | head",
        "python -m benchmarks step --modles=resnet50",
        'ssh host "cd resflax && python train.py --config.epochs=x"',
        'pip install "resflax[tensorbord]"',
    ],
)
def test_wrong_commands_are_found(line, tmp_path):
    with pytest.raises((AssertionError, ValueError)):
        list(map(check, programs(line, tmp_path)))
