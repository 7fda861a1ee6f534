"""Starts several processes of one run on this machine."""

import os
import socket
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT = 900  # seconds; a run takes 20 on an idle machine


def free_port():
    """Returns an unused TCP port of the loopback interface."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_all(commands, *, devices, **env):
    """Runs commands at the same time, each with `devices` virtual devices; all must succeed.

    Returns what each printed. `env` adds variables to the environment.
    """
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        **env,
    }
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in commands
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs
