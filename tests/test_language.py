"""Renamed identifiers and unclear words are not used; see the style section of CONTRIBUTING.md."""

import ast
import io
import re
import tokenize
from pathlib import Path

from helpers.pages import PAGES, ROOT

FOLDERS = ("resflax", "configs", "docs", "tests", "benchmarks", "tools")
PYTHON = [
    ROOT / "train.py",
    *sorted(p for name in FOLDERS for p in (ROOT / name).rglob("*.py") if p != Path(__file__)),
]
MARKDOWN = [*sorted(ROOT.glob("*.md")), *PAGES]

# Identifiers before the renaming, without those that now have another meaning.
OLD_NAMES = set(
    """
    Advance BRANCHES Card ConvForm DamagedError EVERY Examples Feature Fit FREE Layer LEAST_RISE
    LOOK MOST_BLOCKS MOST_BYTES MOST_CHANNELS MOST_CLASSES MOST_INNER MOST_PIXELS NEAR OPERANDS
    Patient Position Prepared Processes ROAD ROADS Reading RunDir SAMPLE SEAL SPREAD
    Saved Scale Slot Stream TOLD Told Unfinished Way _EvalPlaces _Row _TrainPlaces accumulate_steps
    all_asked all_told arrays_from_first as_is augment_from cache_folder checkpoint_keep
    check_settling clip_norm compile_resident dataset_from device_feed draws ends_epochs forced
    from_first gathered host_feed input_from is_first is_whole keep_compiled keep_memory
    keep_two_in_flight kept leaf_sums lives_on_device materialized members_of min_image
    new_head newest_beside nonfinite_limit open_weights optimizer_from others_told params_from
    preparation put_aside read_card recalibrate recalibrate_batches resident results_of run_branch
    schedule_from settled state_from step_epochs step_factor steps_from to_the_end told turns
    unseal unstack why_it_ends without_update write_whole
    _told _look _due _saves _after _line lies_on_device seal settle
    """.split()  # noqa: SIM905
)
# Attributes and imports whose names are common words.
OLD_CODE = re.compile(
    r"engine\.(mine|place|split|fetch|split_steps)\b|\.(beside|evaluated_state|moments\(\))"
    r"|weights import (load|save)\b|resflax\.(picture|memory|cache|nn\.(road|keep|plan|ops|conv))\b"
)
OLD_WORDS = re.compile(
    r"\b(told|tells|borne|mend(s|ed)?|anew|whereof|hitherto|unseal(ed)?|houses?|roads?"
    r"|is no image|is no file|is no run|is no folder)\b",
    re.IGNORECASE,
)


def identifiers(path):
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def matching_lines(paths, pattern):
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]


def test_code_has_no_old_identifier():
    found = {str(p.relative_to(ROOT)): identifiers(p) & OLD_NAMES for p in PYTHON}
    assert {path: names for path, names in found.items() if names} == {}


def test_code_has_no_old_attribute():
    assert matching_lines(PYTHON, OLD_CODE) == []


def test_docs_have_no_old_identifier():
    found = {
        path.name: set(re.findall(r"`(\w+)`", path.read_text())) & OLD_NAMES for path in MARKDOWN
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_text_has_no_old_word():
    assert matching_lines([*PYTHON, *MARKDOWN, ROOT / ".ci" / "run"], OLD_WORDS) == []


def test_names_of_tests_start_with_their_subject():
    wrong = []
    for path in PYTHON:
        if path.name.startswith("test_"):
            names = re.findall(r"^\s*def (test_\w+)\(", path.read_text(), re.MULTILINE)
            bad = re.compile(r"test_(it|its|a|an|the|what|where|whether|how)_")
            wrong += [f"{path.name}: {n}" for n in names if len(n) > 60 or bad.match(n)]
    assert wrong == []


def test_tests_import_no_other_test_or_tool():
    wrong = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = node.module.split(".")[0]
                if module.startswith("test_") or (ROOT / "tools" / f"{module}.py").exists():
                    wrong.append(f"{path.name} imports {node.module}")
    assert wrong == []


def test_first_lines_of_docstrings_start_with_a_verb():
    """Of public functions and methods in the package: "Returns", "Computes", "Raises", ..."""
    wrong = []
    for path in sorted((ROOT / "resflax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef) or not ast.get_docstring(node):
                continue
            decorators = {getattr(d, "attr", getattr(d, "id", "")) for d in node.decorator_list}
            first = (ast.get_docstring(node) or "").split()[0]
            is_property = bool(decorators & {"property", "cached_property"})
            if not is_property and not re.match(r"([A-Z][a-z]+s|See|`)", first):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {first}")
    assert wrong == []
