"""Weights that do not fit on the disk: every format keeps the old file and leaves nothing else."""

import resource

import pytest
from helpers.commands import run_command
from helpers.weight_files import write_timm_folder

OUTPUTS = {
    "safetensors": ("convert", "old.safetensors"),
    "torch": ("convert", "old.pth"),
    "onnx": ("export", "old.onnx"),
    "stablehlo": ("export", "old.stablehlo"),
    "folder": ("export", "new"),
}


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "net"
    write_timm_folder(path, labels=["a", "b"])
    return path


# The compilation cache, whose warnings a command ignores, is on the full disk too.
@pytest.mark.filterwarnings("ignore:Error .* persistent compilation cache")
@pytest.mark.parametrize("case", OUTPUTS)
def test_full_disk_keeps_the_old_weights(net, tmp_path, capsys, case):
    command, name = OUTPUTS[case]
    if case in ("torch", "onnx"):
        pytest.importorskip(case)
    out = tmp_path / name
    if name.startswith("old"):
        out.write_bytes(b"old")
    before = sorted(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        status = run_command(command, str(net), str(out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write {out}")
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    assert not name.startswith("old") or out.read_bytes() == b"old"
