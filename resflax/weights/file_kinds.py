"""Kinds of files, found from their first bytes: names of checkpoints have all kinds of suffixes."""

import zipfile
from pathlib import Path

from resflax.errors import UserError

SAFETENSORS, TORCH, INDEX = "safetensors", "torch", "index"
TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin")
INDEX_SUFFIX = ".index.json"
# Suffixes that `save_file` writes, and those of other names that are files, not repositories.
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
FILE_SUFFIXES = (*SUFFIXES, ".ckpt", ".tar", ".pkl", ".index.json")

HEAD_BYTES = 1024
MIN_TEXT, MAX_TEXT = 4, 60  # characters of a line that is shown
BOM = b"\xef\xbb\xbf"  # with which some text begins
ZIP = b"PK\3\4"
# Pickled magic number with which torch files begin that are not zip archives, without its protocol.
LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ARCHIVE = "{}: unpack it, and give the file in it"
# First bytes of other files, which end up under the names of weights, with what they are.
OTHERS = {
    b"\x1f\x8b": ARCHIVE.format("a gzip archive"),
    b"BZh": ARCHIVE.format("a bzip2 archive"),
    b"\xfd7zXZ": ARCHIVE.format("an xz archive"),
    b"\x28\xb5\x2f\xfd": ARCHIVE.format("a zstd archive"),
    b"7z\xbc\xaf": ARCHIVE.format("a 7z archive"),
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with git lfs pull",
    b"\x89HDF": "an HDF5 file (Keras): expected weights of PyTorch",
    b"\x93NUMPY": "an array of NumPy: expected arrays by name",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
}


def find_kind(path: Path) -> str:
    """Returns SAFETENSORS, TORCH or INDEX: by the content of a file, else by its suffix.

    Raises:
      UserError: if it is another file; the message says what it is.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(ZIP):
        return _kind_of_zip(path)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return SAFETENSORS
    if head[:1] == b"\x80" and head[2:].startswith(LEGACY_TORCH):
        return TORCH
    if head.lstrip()[:1] == b"{" and path.suffix == ".json":
        return INDEX
    if description := _describe(head):
        raise UserError(f"{path} is not a weights file: it is {description}")
    if path.name.endswith(INDEX_SUFFIX):
        return INDEX
    if path.suffix == ".safetensors":  # a truncated or corrupt one
        return SAFETENSORS
    if head[:1] == b"\x80":
        return TORCH  # a pickle, for which torch's message says what is wrong
    raise UserError(
        f"{path} is not a weights file: expected the content of a {', '.join(SUFFIXES)} or"
        f" {INDEX_SUFFIX} file"
    )


def _kind_of_zip(path: Path) -> str:
    """Returns TORCH for the zip archives of torch.

    Raises:
      UserError: if it is another archive, or truncated.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as e:
        raise UserError(
            f"{path} is truncated or not a checkpoint ({path.stat().st_size} bytes): it begins as"
            " torch's archives do, and has no table of contents at its end"
        ) from e
    if any(name.endswith("/constants.pkl") for name in names):
        description = (
            "a TorchScript archive: load it with torch.jit.load, and save its state_dict()"
        )
    elif any(name.endswith("data.pkl") for name in names):
        return TORCH
    elif names and all(name.endswith(".npy") for name in names):
        description = "an .npz file of NumPy: expected weights of PyTorch"
    else:
        description = ARCHIVE.format("a zip archive")
    raise UserError(f"{path} is not a weights file: it is {description}")


def _describe(head: bytes) -> str:
    """Returns what a file is that begins with these bytes; "" if that is not known."""
    if not head:
        return "empty (0 bytes)"
    if head.removeprefix(BOM).lstrip()[:5].lower() in (b"<!doc", b"<html", b"<?xml"):
        return "an HTML page: the download was that of a web page, not of the file"
    if head[257:262] == b"ustar":
        return ARCHIVE.format("a tar archive")
    if known := next((text for start, text in OTHERS.items() if head.startswith(start)), ""):
        return known
    line = head.removeprefix(BOM).strip().partition(b"\n")[0]
    is_text = len(line) >= MIN_TEXT and line.isascii() and line.decode("latin1").isprintable()
    return f"text that begins with {line[:MAX_TEXT].decode()!r}" if is_text else ""
