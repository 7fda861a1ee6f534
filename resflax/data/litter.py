"""Files and folders beside images that systems, archives and annotation tools leave there."""

import os
from collections.abc import Iterator
from pathlib import Path

# Of files and folders, in lower case. Names with a leading dot (._x.png) are litter too.
SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),  # Windows
        *("$recycle.bin", "recycler", "system volume information", "found.000"),  # Windows
        *("picasa.ini", "zbthumbnail.info", "_gsdata_"),  # photo viewers, GoodSync
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # NAS systems
        *("@__thumb", "lost+found", "__pycache__"),
    }
)
# Files with annotations or notes about the images, in lower case.
NOTE_NAMES = frozenset(
    {"readme", "license", "licence", "copying", "notice", "sha256sums", "md5sums"}
)
NOTE_SUFFIXES = frozenset(
    {
        *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml"),
        *(".md", ".rst", ".html", ".htm", ".log", ".url", ".lnk", ".nfo", ".ini"),
        *(".md5", ".sha1", ".sha256", ".xmp", ".aae"),  # checksums, edits of photographs
    }
)


def is_litter(name: str) -> bool:
    """Returns whether a file or folder of this name belongs to a system, not to the images.

    >>> is_litter("__MACOSX"), is_litter("._cat.png"), is_litter("cat.mp4")
    (True, True, False)
    """
    # A copy of an editor, the lock of an office program, the zone of a download on Windows.
    is_beside = name.endswith(("~", ":Zone.Identifier")) or name.startswith("~$")
    return name.startswith(".") or is_beside or name.lower() in SYSTEM_NAMES


def is_note(name: str) -> bool:
    """Returns whether a file of this name has annotations or notes.

    >>> is_note("val_annotations.txt"), is_note("README"), is_note("cat.mp4")
    (True, True, False)
    """
    stem, suffix = os.path.splitext(name.lower())
    return suffix in NOTE_SUFFIXES or (not suffix and stem in NOTE_NAMES)


def is_in_litter(path: str) -> bool:
    """Returns whether a file is litter or a note, or in a folder that belongs to a system.

    >>> is_in_litter("../photos/@eaDir/cat.jpg"), is_in_litter("../photos/cat.jpg")
    (True, False)
    """
    *folders, name = Path(path).parts
    return is_litter(name) or is_note(name) or not SYSTEM_NAMES.isdisjoint(map(str.lower, folders))


def list_visible(folder: Path) -> list[Path]:
    """Returns what is in a folder, without litter and notes, sorted by name.

    Raises:
      OSError: if it cannot be listed.
    """
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not is_litter(e.name)]
    paths = (folder / name for name in sorted(names))
    return [path for path in paths if not is_note(path.name) or path.is_dir()]


def list_folders(folder: Path) -> list[Path]:
    """Returns the folders that are directly in a folder, without litter, sorted by name."""
    return [path for path in list_visible(folder) if path.is_dir()]


def walk_files(root: str | Path) -> Iterator[str]:
    """Yields the paths of the files below a folder, without litter and notes.

    Links to folders are followed, each folder once; a link to a folder that contains `root` is not.

    Raises:
      OSError: if a folder cannot be listed.
    """
    real_root = Path(os.path.realpath(root))
    seen = {str(parent) for parent in real_root.parents}
    for folder, subfolders, files in os.walk(root, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not is_litter(name))
        yield from (
            os.path.join(folder, name)
            for name in sorted(files)
            if not is_litter(name) and not is_note(name)
        )


def _raise(error: OSError) -> None:
    raise error
