"""Files of checkpoints, and damage to them."""


def step_names(folder):
    """Returns the names in a folder of checkpoints, sorted."""
    return sorted(path.name for path in folder.iterdir())


def files_in(folder):
    """Returns all files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip_bit(path, bit):
    """Changes one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


def flip_middle_bit(path):
    """Changes a bit in the middle of a file."""
    flip_bit(path, 8 * path.stat().st_size // 2 + 3)
