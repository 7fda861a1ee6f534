"""Downloads repositories of the Hugging Face Hub."""

import os
from pathlib import Path

from resflax.errors import UserError
from resflax.runtime import home_dir

# What else than the home directory says where downloads are saved.
HUB_CACHE_VARIABLES = {"HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"}
PATTERNS = ["*.json", "model*.safetensors"]
PICKLE_PATTERNS = ["pytorch_model*.bin"]


def fetch(repository: str, revision: str | None = None) -> Path:
    """Returns the local folder of a Hub repository, downloading it to the Hub's cache if needed.

    Pickled weights are downloaded only if the repository has no safetensors files. The environment
    variables HF_HOME, HF_HUB_OFFLINE and HF_ENDPOINT apply.

    Args:
      repository: "owner/name".
      revision: branch, tag or commit; by default the main branch.

    Raises:
      UserError: if the download fails.
    """
    if home_dir() is None and not HUB_CACHE_VARIABLES & os.environ.keys():
        raise UserError(
            f"cannot fetch {repository} from the Hub: there is no home directory to save it in:"
            " set HF_HOME to a directory that can be written"
        )
    import huggingface_hub as hub

    try:
        folder = Path(hub.snapshot_download(repository, revision=revision, allow_patterns=PATTERNS))
        if not any(folder.glob("model*.safetensors")):
            patterns = PATTERNS + PICKLE_PATTERNS
            folder = Path(
                hub.snapshot_download(repository, revision=revision, allow_patterns=patterns)
            )
    except Exception as e:  # the Hub raises many unrelated exception types
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        if isinstance(e, PermissionError):
            raise UserError(
                f"cannot fetch {repository} from the Hub: {reason}: set HF_HOME to a directory that"
                " can be written"
            ) from e
        raise UserError(
            f"cannot fetch {repository} from the Hub: {reason}; there is no local folder of this"
            " name either"
        ) from e
    return folder
