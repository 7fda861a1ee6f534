"""Tables of `decode`, `loader` and `input`."""

from typing import Any

from benchmarks.peers.decoders import OUTPUTS
from benchmarks.report import number, speed_ratio, table

Result = dict[str, Any]


def files_caption(files: dict[str, float]) -> str:
    """Formats the statistics of the JPEGs."""
    return (
        f"{files['count']:,.0f} JPEGs of {files['bytes'] / 1e3:.0f} kB and"
        f" {files['pixels'] / 1e3:.0f} kpixels on average"
    )


def _milliseconds(seconds: dict[str, float]) -> list[str]:
    low, median, high = (
        number(1e3 * seconds[key]) for key in ("quartile_low", "median", "quartile_high")
    )
    return [median, f"{low} to {high}"]


def decode_table(result: Result) -> str:
    """Formats one row per decoder, with time and pixels compared with the first, resflax."""
    cases, rows = result["cases"], []
    names = list(result["differences"])
    for name in names:
        ms = {output: 1e3 / cases[f"{name}/{output}"]["images_per_second"] for output in OUTPUTS}
        pixels = [
            "equal" if lowest is None else f"{lowest:.1f} dB"
            for lowest in result["differences"][name].values()
        ]
        speed = speed_ratio(cases, f"{name}/train", f"{names[0]}/train")
        rows.append([name, *(number(ms[output]) for output in OUTPUTS), speed, *pixels])
    header = ["decoder", "whole ms", "train ms", "eval ms", f"train vs {names[0]}"]
    header += [f"{output} pixels" for output in OUTPUTS]
    return f"{files_caption(result['files'])}; on one thread\n\n{table(header, rows)}"


def loader_table(result: Result) -> str:
    """Formats one row per loader and number of workers, compared with torch and with 1 worker."""
    cases, rows = result["cases"], []
    for name, values in cases.items():
        library, _, num_workers = name.partition(", ")
        rows.append(
            [
                f"{library}, {num_workers} workers" if num_workers else name,
                number(values["images_per_second"]),
                speed_ratio(cases, name, f"torch, {num_workers}"),
                speed_ratio(cases, name, f"{library}, 1"),
                number(values["images_per_core_second"]),
            ]
        )
    header = ["loader", "images/s", "vs torch", "vs 1 worker", "images/s per core"]
    return f"{files_caption(result['files'])}\n\n{table(header, rows)}"


def input_table(result: Result) -> str:
    """Formats one row per case; the overhead is relative to the first, the fixed batch."""
    rows: list[list[str]] = []
    for name, values in result["cases"].items():
        low, median, high = (f"{100 * value:+.1f} %" for value in values["overhead"])
        rows.append(
            [
                name,
                *_milliseconds(values["seconds"]),
                number(values["images_per_second"]),
                *((median, f"{low} to {high}") if rows else ("-", "-")),
                f"{100 * values['blocked_share']:.1f} %",
            ]
        )
    header = ["input", "ms per step", "quartiles", "images/s"]
    header += ["overhead", "quartiles", "waiting for input"]
    caption = f"{files_caption(result['files'])}\n\n" if result["files"] else ""
    return caption + table(header, rows)


TABLES = {"decode": decode_table, "loader": loader_table, "input": input_table}
