"""Version and metadata of a release: changelog, citation and package agree."""

import datetime
import re
import tomllib
from pathlib import Path

import yaml

import resflax

ROOT = Path(__file__).parents[1]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RELEASES = re.findall(
    r"^## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
)


def test_version_is_that_of_changelog_and_citation():
    version, date = RELEASES[0]
    assert resflax.__version__ == version == CITATION["version"]
    assert datetime.date.fromisoformat(date) == CITATION["date-released"]
    assert PROJECT["tool"]["hatch"]["version"] == {"path": "resflax/__init__.py"}


def test_releases_are_listed_newest_first():
    numbers = [tuple(map(int, version.split("."))) for version, _ in RELEASES]
    dates = [date for _, date in RELEASES]
    assert numbers == sorted(set(numbers), reverse=True)
    assert dates == sorted(dates, reverse=True)


def test_citation_has_the_keys_of_cff_1_2_0():
    required = {"cff-version", "message", "title", "authors"}
    assert required <= set(CITATION)
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] == "software"
    assert CITATION["license"] == PROJECT["project"]["license"]
    assert CITATION["authors"] == [{"name": "the resflax authors"}]


def test_citation_refers_to_the_paper():
    (paper,) = CITATION["references"]
    assert {"type", "title", "authors"} <= set(paper)  # those that cff 1.2.0 requires
    assert [author["family-names"] for author in paper["authors"]] == ["He", "Zhang", "Ren", "Sun"]
    assert "arXiv:1512.03385" in [identifier["value"] for identifier in paper["identifiers"]]
