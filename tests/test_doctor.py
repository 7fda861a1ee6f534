"""`python -m resflax doctor`, as its users meet it, and that it can find fault."""

import os
import re
import subprocess
import sys

import jax
import pytest

from resflax import UserError
from resflax.cli import doctor


def test_it_passes_on_eight_virtual_devices_of_its_own():
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "resflax", "doctor"], env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"8 devices: cpu (cpu); jax {jax.__version__}")
    rows = [line for line in lines if line.startswith(("pass", "FAIL"))]
    assert [row[:4] for row in rows] == ["pass"] * 7
    for what in ("mesh, 8 devices, as one", "state spread over 2", "pmap, saved and restored"):
        assert sum(what in row for row in rows) == 1
    assert re.search(r"mesh, saved and restored +the same bits", done.stdout)


def test_losses_that_differ_are_a_failure_and_status_2(monkeypatch, capsys):
    right = doctor.Trial.run

    def wrong(self, state, stop):
        state, losses = right(self, state, min(stop, 2))
        return state, [loss * (1 + 1e-3 * len(self.engine.devices)) for loss in losses]

    monkeypatch.setattr(doctor.Trial, "run", wrong)
    monkeypatch.setattr(doctor, "STEPS", 2)
    monkeypatch.setattr(
        doctor, "_saved_and_restored", lambda what, patient: doctor.Check(what, 1, "")
    )
    with pytest.raises(UserError, match="3 checks failed"):
        doctor.main([])
    out = capsys.readouterr().out
    assert out.count("FAIL") == 3
    assert re.search(r"FAIL  mesh, 8 devices, as one +losses at most 7.0e-03 apart", out)


def test_arguments_are_refused():
    with pytest.raises(UserError, match="unexpected argument '--fast'"):
        doctor.main(["--fast"])
