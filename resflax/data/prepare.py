"""Prepares a stock set of TensorFlow Datasets as array_record, once; only this needs TensorFlow."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import download_manager
from tensorflow_datasets.core.utils import gcs_utils

from resflax.errors import UserError, unknown


def prepare(name: str, data_dir: str = "", manual_dir: str = "") -> Path:
    """Prepares a set and returns its folder.

    Args:
      name: as TFDS spells it.
      data_dir: where prepared sets lie; "" is TFDS's own choice.
      manual_dir: a folder that holds the set's archives; nothing is downloaded then, and what is
        missing there is named.

    Raises:
      UserError: if TensorFlow is missing, there is no such set, or it cannot be prepared.
    """
    stock = tfds.list_builders(with_community_datasets=False)
    if name.split(":")[0].split("/")[0] not in stock:
        raise unknown("dataset", name, stock)
    if manual_dir and not Path(manual_dir).is_dir():
        raise UserError(f"there is no folder {manual_dir}: expected one with the set's archives")
    try:
        import tensorflow  # noqa: F401
    except ImportError as e:
        raise UserError(
            'preparing a set needs TensorFlow (training does not): pip install -e ".[prepare]"'
        ) from e
    config = tfds.download.DownloadConfig(manual_dir=manual_dir or None, try_download_gcs=False)
    with _no_bucket(), _only_local(manual_dir) if manual_dir else _as_ever():
        try:
            builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
            builder.download_and_prepare(download_config=config)
        except UserError:
            raise
        except Exception as e:  # a builder is anybody's code: it may raise anything
            reason = (str(e).strip() or type(e).__name__).splitlines()[0]
            raise UserError(f"cannot prepare {name}: {reason}") from e
    return Path(builder.data_dir)


@contextmanager
def _no_bucket() -> Iterator[None]:
    """Without it TFDS looks for a prepared copy on the network, and retries for minutes."""
    with mock.patch.object(gcs_utils, "_is_gcs_disabled", True):
        yield


@contextmanager
def _as_ever() -> Iterator[None]:
    yield


@contextmanager
def _only_local(manual_dir: str) -> Iterator[None]:
    def refuse(manager: Any, resource: Any, *args: Any, **kwargs: Any) -> NoReturn:
        del manager, args, kwargs
        url = getattr(resource, "url", resource)
        name = str(url).rsplit("/", 1)[-1]
        raise UserError(f"{manual_dir} has no {name}: expected what {url} has under that name")

    with mock.patch.object(download_manager.DownloadManager, "_download", refuse):
        yield
