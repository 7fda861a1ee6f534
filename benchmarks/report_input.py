"""Tables of `decode`, `loader` and `input`."""

from typing import Any

from benchmarks.peers.decoders import WHAT
from benchmarks.report import number, table

Result = dict[str, Any]


def files(about: dict[str, float]) -> str:
    """The images, in a line."""
    return (
        f"{about['count']:,.0f} JPEGs of {about['bytes'] / 1e3:.0f} kB and"
        f" {about['pixels'] / 1e3:.0f} kpixels on average"
    )


def _milliseconds(seconds: dict[str, float], images: int = 1) -> list[str]:
    low, median, high = (
        number(1e3 * seconds[key] / images) for key in ("quartile_low", "median", "quartile_high")
    )
    return [median, f"{low} to {high}"]


def decode(result: Result) -> str:
    """A row for each decoder; the pixels against those of the first, which is resflax."""
    found, rows = result["contenders"], []
    names = list(result["differences"])
    for name in names:
        each = {what: 1e3 / found[f"{name}/{what}"]["images_per_second"] for what in WHAT}
        first = 1e3 / found[f"{names[0]}/train"]["images_per_second"]
        pixels = [
            "the same" if worst is None else f"{worst:.1f} dB"
            for worst in result["differences"][name].values()
        ]
        speed = f"{first / each['train']:.2f}x"
        rows.append([name, *(number(each[what]) for what in WHAT), speed, *pixels])
    head = ["decoder", "whole ms", "train ms", "eval ms", f"train vs {names[0]}"]
    head += [f"{what} pixels" for what in WHAT]
    return f"{files(result['files'])}; on one thread\n\n{table(head, rows)}"


def loader(result: Result) -> str:
    """A row for each loader and number of workers; scaling is against its row of one worker."""
    found, rows = result["contenders"], []
    for name, one in found.items():
        library, _, workers = name.partition(", ")
        rate = one["images_per_second"]

        def against(other: str, rate: float = rate) -> str:
            rates = found.get(other)
            return f"{rate / rates['images_per_second']:.2f}x" if rates else "-"

        rows.append(
            [
                name if not workers else f"{library}, {workers} workers",
                number(rate),
                against(f"torch, {workers}"),
                against(f"{library}, 1"),
                number(one["images_per_core_second"]),
            ]
        )
    head = ["loader", "images/s", "vs torch", "vs 1 worker", "images/s a core"]
    return f"{files(result['files'])}\n\n{table(head, rows)}"


def inputs(result: Result) -> str:
    """A row for each road; the cost is the median over the rounds, with quartiles."""
    rows = []
    for name, found in result["contenders"].items():
        low, median, high = (f"{100 * value:+.1f} %" for value in found["cost"])
        rows.append(
            [
                name,
                *_milliseconds(found["seconds"]),
                number(found["images_per_second"]),
                *((median, f"{low} to {high}") if rows else ("-", "-")),
                f"{100 * found['blocked_share']:.1f} %",
            ]
        )
    head = ["input", "ms a step", "quartiles", "images/s", "cost", "quartiles", "waits for input"]
    about = f"{files(result['files'])}\n\n" if result["files"] else ""
    return about + table(head, rows)


TABLES = {"decode": decode, "loader": loader, "input": inputs}
