"""Upload of an exported folder to the Hugging Face Hub."""

from pathlib import Path

from resflax.errors import UserError


def check_repository(name: str) -> None:
    """Checks that a name has the form owner/name.

    Raises:
      UserError: if it has not.
    """
    owner, _, repository = name.partition("/")
    if not owner or not repository or "/" in repository or name.startswith((".", "~")):
        raise UserError(f"--push is {name!r}: expected a repository of the Hub, as owner/name")


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Uploads the files of a folder to a repository, creating it if needed; returns its address.

    Token, endpoint and offline mode are those of huggingface_hub (HF_TOKEN, HF_ENDPOINT,
    HF_HUB_OFFLINE).

    Args:
      folder: an exported folder.
      name: owner/name of the repository.
      private: whether a new repository is private.

    Raises:
      UserError: if the upload fails.
    """
    check_repository(name)
    import huggingface_hub as hub

    api = hub.HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Upload the model exported by resflax"
        )
    except Exception as e:  # the Hub raises many unrelated exception types
        reason = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise UserError(
            f"cannot upload {folder} to {name}: {reason}; the folder is complete: check the network"
            " and the token (`hf auth login`, or HF_TOKEN), and export again"
        ) from e
    return str(address)
