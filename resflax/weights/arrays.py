"""Arrays of a state dict, converted to NumPy from torch, JAX and NumPy."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from resflax.errors import UserError

Arrays = dict[str, np.ndarray]


def is_array(value: Any) -> bool:
    """Returns whether a value is an array or a tensor, of any library.

    >>> is_array(np.ones(3)), is_array([1, 2])
    (True, False)
    """
    return all(hasattr(value, name) for name in ("shape", "dtype", "ndim"))


def to_arrays(state_dict: Mapping[str, Any]) -> Arrays:
    """Converts the values of a state dict by `to_numpy`."""
    return {name: to_numpy(value, name) for name, value in state_dict.items()}


def to_numpy(value: Any, name: str) -> np.ndarray:
    """Converts a torch tensor, or anything that `np.asarray` accepts, to a NumPy array.

    Tensors may require gradients, be parameters, views or bfloat16, or be on any device.

    Raises:
      UserError: if it has no values (meta tensors), or is not a dense array of real numbers.
    """
    if hasattr(value, "detach"):
        return _tensor_to_numpy(value, name)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as e:
        raise UserError(f"{name} is not an array: {e}") from e
    if array.dtype.kind not in "biuf" and array.dtype != ml_dtypes.bfloat16:
        kind = f"an array of dtype {array.dtype}" if is_array(value) else f"a {_type_name(value)}"
        raise UserError(f"{name} is {kind}: expected an array of real numbers")
    return array


def _tensor_to_numpy(tensor: Any, name: str) -> np.ndarray:
    if tensor.is_meta:
        raise UserError(
            f"{name} is a meta tensor, which has no values: load the weights into the network first"
        )
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise UserError(
            f"{name} is a tensor of dtype {tensor.dtype} and layout {tensor.layout}: expected a"
            " dense tensor of real numbers"
        )
    tensor = tensor.detach().cpu().resolve_neg().contiguous()
    if tensor.dtype == torch.bfloat16:  # which `Tensor.numpy` does not support
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    try:
        return tensor.numpy()
    except TypeError as e:
        raise UserError(
            f"{name} has dtype {tensor.dtype}, which NumPy does not have: convert it to float32"
        ) from e


def to_tensor(array: np.ndarray) -> Any:
    """Converts a NumPy array to a torch tensor of the same dtype, also bfloat16."""
    import torch

    array = np.array(array, order="C")  # torch warns about arrays that are read-only
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _type_name(value: Any) -> str:
    return type(value).__name__
