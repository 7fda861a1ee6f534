"""Preparation of TensorFlow Datasets as array_record; the only module that needs TensorFlow."""

from pathlib import Path
from typing import Any, NoReturn

import tensorflow_datasets as tfds

from resflax.errors import UserError, unknown
from resflax.files import expand_path


def prepare(name: str, data_dir: str = "", manual_dir: str = "") -> Path:
    """Prepares a dataset and returns its folder.

    Args:
      name: the name in TFDS.
      data_dir: folder of prepared datasets; "" is the default of TFDS.
      manual_dir: a folder that holds the dataset's archives. If given, nothing is downloaded and a
        missing archive is an error.

    Raises:
      UserError: if TensorFlow is not installed, or the dataset does not exist or cannot be
        prepared.
    """
    data_dir = expand_path(data_dir, "data_dir")
    manual_dir = expand_path(manual_dir, "manual_dir")
    known = tfds.list_builders(with_community_datasets=False)
    if name.split(":")[0].split("/")[0] not in known:
        raise unknown("dataset", name, known)
    if manual_dir and not Path(manual_dir).is_dir():
        raise UserError(
            f"folder {manual_dir} does not exist: expected one with the dataset's archives"
        )
    try:
        import tensorflow  # noqa: F401
    except ImportError as e:
        raise UserError(
            "preparing a dataset needs TensorFlow (training does not):"
            ' pip install "resflax[prepare]"'
        ) from e
    config = tfds.download.DownloadConfig(manual_dir=manual_dir or None, try_download_gcs=False)
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
        if manual_dir:
            forbid_downloads(builder, manual_dir)
        builder.download_and_prepare(download_config=config)
    except UserError:
        raise
    except Exception as e:  # a dataset builder may raise anything
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise UserError(f"cannot prepare {name}: {reason}") from e
    return Path(builder.data_dir)


def forbid_downloads(builder: Any, manual_dir: str) -> None:
    """Makes a TFDS builder raise `UserError` for an archive that `manual_dir` lacks.

    TFDS has no such setting, so this overrides the builder's factory of download managers.
    """
    make_manager = builder._make_download_manager

    def raise_missing(resource: Any) -> NoReturn:
        url = getattr(resource, "url", resource)
        name = str(url).rsplit("/", 1)[-1]
        raise UserError(f"{manual_dir} has no {name}: download {url} and save it under that name")

    def make_offline_manager(**kwargs: Any) -> Any:
        manager = make_manager(**kwargs)
        manager._download = raise_missing
        return manager

    builder._make_download_manager = make_offline_manager
