"""The command `resflax doctor`: its table, and failing checks."""

import os
import re
import subprocess
import sys

import jax
import pytest

from resflax import UserError
from resflax.cli import doctor


@pytest.mark.slow
def test_doctor_passes_on_eight_virtual_devices():
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "resflax", "doctor"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"8 devices: cpu (cpu); jax {jax.__version__}")
    rows = [line for line in lines if line.startswith(("pass", "FAIL"))]
    assert [row[:4] for row in rows] == ["pass"] * 9
    for name in (
        "mesh, 8 devices: equals one",
        "state sharded over 2: equals one",
        "pmap: resumes from a checkpoint",
    ):
        assert sum(name in row for row in rows) == 1
    assert re.search(r"mesh: resumes from a checkpoint +bit-identical", done.stdout)


@pytest.mark.slow
def test_different_losses_fail_the_checks(monkeypatch, capsys):
    run = doctor.Trial.run

    def run_with_error(self, state, stop):
        """Adds a relative error of 1e-3 per device to the losses."""
        state, losses = run(self, state, min(stop, 2))
        return state, [loss * (1 + 1e-3 * len(self.engine.devices)) for loss in losses]

    monkeypatch.setattr(doctor.Trial, "run", run_with_error)
    monkeypatch.setattr(doctor, "STEPS", 2)
    monkeypatch.setattr(doctor, "_check_resume", lambda name, trial: doctor.Check(name, True, ""))
    with pytest.raises(UserError, match="4 checks failed"):
        doctor.main([])
    out = capsys.readouterr().out
    assert out.count("FAIL") == 4
    assert re.search(
        r"FAIL  mesh, 8 devices: equals one +largest relative loss difference 7.0e-03", out
    )


def test_doctor_rejects_arguments():
    with pytest.raises(UserError, match="unexpected argument '--fast'"):
        doctor.main(["--fast"])


def test_doctor_help_describes_the_checks(capsys):
    doctor.main(["--help"])
    assert "usage: resflax doctor" in capsys.readouterr().out
