"""Tables of `step`, `inference`, `compile`, `memory` and `--layers`."""

from collections.abc import Sequence
from typing import Any

from benchmarks.layers import forward_flops, layers, train_flops
from benchmarks.task import Task

Result = dict[str, Any]
THROUGHPUT_COLUMNS = (
    "implementation", "ms", "quartiles", "images/s", "vs {}", "utilization", "peak MiB",
)  # fmt: skip
# Columns: title, key in the result, unit.
FRESH_PROCESS_COLUMNS = {
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
        ("device MiB", "peak_device_bytes", 2.0**20),
        ("temporaries MiB", "temporary_bytes", 2.0**20),
    ),
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table with aligned columns, the first one to the left."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
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
    """Formats a number with three significant digits and without exponent; "-" for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def speed_ratio(results: dict[str, Result], name: str, baseline: str) -> str:
    """Formats the speed of `name` divided by that of `baseline`; "-" without a baseline."""
    if baseline not in results:
        return "-"
    ratio = results[name]["images_per_second"] / results[baseline]["images_per_second"]
    return f"{ratio:.2f}x"


def throughput_table(result: Result, baseline: str) -> str:
    """Formats the result of `step` or `inference`."""
    results, rows = result["implementations"], []
    for name, values in results.items():
        ms = {key: 1e3 * value for key, value in values["seconds"].items()}
        peak = values["peak_device_bytes"] or values["peak_resident_bytes"]
        rows.append(
            [
                name,
                number(ms["median"]),
                f"{number(ms['quartile_low'])} to {number(ms['quartile_high'])}",
                number(values["images_per_second"]),
                speed_ratio(results, name, baseline),
                f"{100 * values['utilization']:.1f} %",
                number(peak and peak / 2**20),
            ]
        )
    gemm = result["gemm"]
    gflop, seconds = 2e-9 * gemm["side"] ** 3, gemm["seconds"]
    low, high = gflop / seconds["quartile_high"], gflop / seconds["quartile_low"]
    caption = (
        f"{result['flops_per_image'] / 1e9:.4g} GFLOP per image; 100 % utilization is the rate of"
        f" a {gemm['side']}^3 GEMM in {gemm['dtype']} with {gemm['library']}:"
        f" {number(gemm['flops_per_second'] / 1e9)} GFLOP/s (quartiles {number(low)} to"
        f" {number(high)})"
    )
    header = [cell.format(baseline) for cell in THROUGHPUT_COLUMNS]
    return f"{caption}\n\n{table(header, rows)}"


def fresh_process_table(result: Result, command: str) -> str:
    """Formats the result of `compile` or `memory`."""
    columns = FRESH_PROCESS_COLUMNS[command]
    rows = []
    for name, values in result["implementations"].items():
        cells = [(values.get(key), unit) for _, key, unit in columns]
        rows.append([name, *(number(None if v is None else v / unit) for v, unit in cells)])
    return table(["implementation", *(column[0] for column in columns)], rows)


def heading(task: Task, command: str, platform: str) -> str:
    """Formats the heading above a table."""
    return f"## {command}: {task.name}, {task.dtype}{f', {platform}' if platform else ''}"


def layer_table(task: Task) -> str:
    """Formats the shape and the forward operations per image of every layer."""
    network = layers(task.spec, task.sides, task.channels)
    total = forward_flops(network)
    rows = [
        [
            layer.name,
            "x".join(map(str, layer.kernel)),
            f"{layer.cin} -> {layer.cout}",
            "x".join(map(str, layer.sides)),
            f"{layer.flops / 1e6:,.2f}",
            f"{100 * layer.flops / total:.1f} %",
        ]
        for layer in network
    ]
    body = table(["layer", "kernel", "channels", "output", "MFLOP", "share"], rows)
    return (
        f"## {task.model} at {'x'.join(map(str, task.sides))}, one image\n\n{body}\n\n"
        f"forward {total / 1e9:.4g} GFLOP ({total / 2e9:.4g} GMAC),"
        f" training step {train_flops(network) / 1e9:.4g} GFLOP"
    )
