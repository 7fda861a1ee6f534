"""`python tests/faults [kill|stop|flip|disk|lost|devices] [--runs=N]`: hurts runs, and reports."""

import signal
import sys

import devices
import disk
import flip
import kill
import lost
import stop

from resflax.cli.flags import quiet


def kills(runs: int) -> bool:
    good = True
    for kind, count in (("resident", runs - runs // 4), ("workers", runs // 4)):
        found = kill.campaign(count, kind)
        print(f"kill, {kind}: {found.identical} of {count} bit-identical,", end=" ")
        print(
            f"{sum(found.kills.values())} kills ({dict(found.kills)}), up to {found.maximum} a run;"
        )
        print(f"  processes left over 5 s after a kill: {len(found.left_over)}")
        print(*found.wrong, sep="\n", end="", flush=True)
        good &= found.identical == count and not found.left_over
    return good


def stops(runs: int) -> bool:
    good = True
    for number in (signal.SIGTERM, signal.SIGINT):
        found = stop.campaign(runs, number)
        print(f"{number.name}: {found.right} of {runs}, {found.saved} of them with a step saved,")
        print(f"  at most {max(found.seconds):.1f} s from the signal to the end")
        print(*found.wrong, sep="\n", end="", flush=True)
        good &= found.right == runs
    return good


def flips(runs: int) -> bool:
    found = flip.campaign(runs)
    for kind, tried in found.tried.items():
        print(f"{kind}: {found.told.get(kind, 0)} of {tried} told, the last whole step taken")
    print(*found.wrong, sep="\n", end="", flush=True)
    return not found.wrong


def disks(runs: int) -> bool:
    good = True
    for what, hurt in (
        ("no file may be larger than half a checkpoint's", disk.size_limited),
        ("a tmpfs of 400 kB", disk.small_disk),
        ("a disk that turns read-only", disk.read_only),
    ):
        wrong = hurt()
        print(f"{what}:", wrong or "one error, the last checkpoint stood, went on to the bits")
        good &= not wrong
    return good


def losses(runs: int) -> bool:
    good = True
    for engine in ("pmap", "mesh"):
        for number, what in ((signal.SIGKILL, "killed"), (signal.SIGTERM, "asked to end")):
            found = lost.campaign(runs, engine, number)
            print(
                f"two processes, {engine}, one {what}: {found.ended} of {runs} ended all,", end=" "
            )
            print(f"after {max(found.seconds):.1f} s at most; {found.resumed} went on to the bits")
            print(*found.wrong, sep="\n", end="", flush=True)
            good &= found.ended == found.resumed == runs
    return good


def table(runs: int) -> bool:
    good = True
    columns = ("engine", "devices", "processes", "fsdp", "started", "loss at the end",
               "apart there", "largest apart", "parameters apart")  # fmt: skip
    print("|", " | ".join(columns), "|")
    print("|---|--:|--:|--:|---|--:|--:|--:|--:|")
    for row in devices.campaign():
        figures = [f"{row.loss:.6f}", *(f"{x:.1e}" for x in row[2:])]
        print("|", " | ".join([*map(str, row.layout), *figures]), "|", flush=True)
        good &= row.largest < 1e-4  # in float32; in float64 it is far less
    return good


CAMPAIGNS = {
    "kill": (kills, 100), "stop": (stops, 10), "flip": (flips, 100), "disk": (disks, 1),
    "lost": (losses, 4), "devices": (table, 1),
}  # fmt: skip


def main() -> int:
    """Runs what is named, or all; 1 if anything went wrong."""
    quiet()
    named = [word for word in sys.argv[1:] if not word.startswith("--")] or list(CAMPAIGNS)
    asked = [int(word.partition("=")[2]) for word in sys.argv[1:] if word.startswith("--runs=")]
    good = [CAMPAIGNS[name][0](*(asked or [CAMPAIGNS[name][1]])) for name in named]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
