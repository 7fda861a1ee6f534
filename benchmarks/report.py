"""Tables on stdout."""

from collections.abc import Sequence
from typing import Any

from benchmarks.layers import forward_flops, layers, train_flops
from benchmarks.task import Task

Result = dict[str, Any]
RATES = ("contender", "ms", "quartiles", "images/s", "vs {}", "utilisation", "peak MiB")
CELLS = {
    "compile": (
        ("trace s", "trace_seconds", 1.0),
        ("lower s", "lower_seconds", 1.0),
        ("compile s", "compile_seconds", 1.0),
        ("total s", "total_seconds", 1.0),
        ("temporaries MiB", "temporary_bytes", 2.0**20),
    ),
    "memory": (
        ("imported MiB", "imported_bytes", 2.0**20),
        ("compiled MiB", "compiled_bytes", 2.0**20),
        ("training MiB", "peak_resident_bytes", 2.0**20),
        ("device MiB", "device_bytes", 2.0**20),
        ("temporaries MiB", "temporary_bytes", 2.0**20),
    ),
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal: the first to the left."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in [lines[0], rule, *lines[1:]]
    )


def number(value: float | None) -> str:
    """Three significant digits, and no exponent."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def against(result: Result, name: str, peer: str) -> str:
    """How many times as fast a contender is as the peer."""
    contenders = result["contenders"]
    if peer not in contenders:
        return "-"
    ratio = contenders[name]["images_per_second"] / contenders[peer]["images_per_second"]
    return f"{ratio:.2f}x"


def rates(result: Result, peer: str) -> str:
    """The table of `step` and `inference`."""
    rows = []
    for name, found in result["contenders"].items():
        times = {key: 1e3 * value for key, value in found["seconds"].items()}
        peak = found["device_bytes"] or found["peak_resident_bytes"]
        rows.append(
            [
                name,
                number(times["median"]),
                f"{number(times['quartile_low'])} to {number(times['quartile_high'])}",
                number(found["images_per_second"]),
                against(result, name, peer),
                f"{100 * found['utilisation']:.1f} %",
                number(peak and peak / 2**20),
            ]
        )
    gemm = result["gemm"]
    work, seconds = 2e-9 * gemm["side"] ** 3, gemm["seconds"]
    low, high = work / seconds["quartile_high"], work / seconds["quartile_low"]
    roof = (
        f"{result['flops_per_image'] / 1e9:.4g} GFLOP an image; 100 % is the rate of a GEMM of"
        f" {gemm['side']}^3 in {gemm['dtype']} through {gemm['library']}:"
        f" {number(gemm['flops_per_second'] / 1e9)} GFLOP/s (quartiles {number(low)} to"
        f" {number(high)})"
    )
    return f"{roof}\n\n{table([cell.format(peer) for cell in RATES], rows)}"


def costs(result: Result, command: str) -> str:
    """The table of `compile` and `memory`."""
    cells = CELLS[command]
    rows = []
    for name, found in result["contenders"].items():
        values = [(found.get(key), unit) for _, key, unit in cells]
        rows.append([name, *(number(None if v is None else v / unit) for v, unit in values)])
    return table(["contender", *(cell[0] for cell in cells)], rows)


def heading(task: Task, command: str, platform: str) -> str:
    """What a table is about."""
    return f"## {command}: {task.name}, {task.dtype}{f', {platform}' if platform else ''}"


def layer_table(task: Task) -> str:
    """Every layer's shape and cost, forward, of one image."""
    rows = layers(task.spec, task.size, task.channels)
    total = forward_flops(rows)
    cells = [
        [
            row.name,
            f"{row.kernel}x{row.kernel}",
            f"{row.cin} -> {row.cout}",
            f"{row.side}x{row.side}",
            f"{row.flops / 1e6:,.2f}",
            f"{100 * row.flops / total:.1f} %",
        ]
        for row in rows
    ]
    body = table(["layer", "kernel", "channels", "output", "MFLOP", "share"], cells)
    return (
        f"## {task.model} at {task.size}x{task.size}, one image\n\n{body}\n\n"
        f"forward {total / 1e9:.4g} GFLOP ({total / 2e9:.4g} GMAC),"
        f" training step {train_flops(rows) / 1e9:.4g} GFLOP"
    )
