"""The process of the command line: what it prints in any encoding."""

import io
import os

import pytest

from resflax.cli.main import print_any_text


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", b"caf\\xe9 \\u732b \xe9.png"),
        ("latin-1", b"caf\xe9 \\u732b \xe9.png"),
        ("utf-8", "café 猫 ".encode() + b"\xe9.png"),
    ],
)
def test_any_text_can_be_printed_in_any_encoding(encoding, expected, monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(buffer, encoding))
    print_any_text()
    print("café 猫", os.fsdecode(b"\xe9.png"), end="", flush=True)
    assert buffer.getvalue() == expected
