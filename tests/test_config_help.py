"""The text of `resflax train --help`: every key of the config, by group, with what it means."""

import re

import pytest

from resflax.cli.config_help import describe_keys
from resflax.run.config_diff import flatten_config
from resflax.train import default_config
from resflax.train.config_keys import GROUPS, KEYS
from resflax.train.config_rules import CHOICES, EXPECTED, RULES, expected_values


def test_keys_are_in_one_group_each():
    assert sum(map(len, GROUPS.values())) == len(KEYS)
    assert set(KEYS) == set(flatten_config(default_config()))


def test_tables_of_values_have_no_other_keys():
    assert {*CHOICES, *RULES, *EXPECTED} <= set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_key_has_a_meaning_of_one_sentence(key):
    meaning = KEYS[key].meaning
    assert len(meaning) > 5
    assert not meaning.endswith(".")
    assert key.startswith("spec.") or ". " not in meaning


@pytest.mark.parametrize("key", KEYS)
def test_help_shows_default_meaning_and_values(key):
    default = {"data.crop_scale": "0.08,1", "data.crop_ratio": "0.75,1.333"}.get(
        key, KEYS[key].default
    )
    flag = f"  --config.{key}" if default is None else f"  --config.{key}={default}"
    lines = describe_keys(10**6).splitlines()
    text = lines[lines.index(flag) + 1]
    assert KEYS[key].meaning[1:].replace("`", "") in text
    expected = expected_values(key).replace("`", "")
    assert text.endswith(f" Values: {expected}.") or expected == "a text"


@pytest.mark.parametrize("width", [40, 80, 100])
def test_help_is_wrapped_to_the_terminal(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = describe_keys().splitlines()
    assert max(len(line) for line in lines if line.startswith(" " * 6)) <= width
    assert [line[:-1].lower() for line in lines if re.match("[A-Z].*:$", line)][1:] == [*GROUPS]
