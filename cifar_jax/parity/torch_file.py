"""Reading and writing PyTorch's files without running anything in them: .pt, .pth and .safetensors.

Contents are plain dicts, lists, numbers, strings and None; tensors are NumPy arrays. A .safetensors file is a flat dict
of arrays.
"""

import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.errors import InputError

SUFFIXES = (".pt", ".pth", ".safetensors")


def read_file(path: Path) -> Any:
    """What the file holds.

    Raises:
      InputError: it is not there, damaged, of another kind, or cannot be read without running code in it.
    """
    expected = f"IN must be a file of weights that PyTorch or safetensors wrote, got {str(path)!r}"
    if not path.is_file():
        raise InputError(f"{expected}, which {'is a folder' if path.exists() else 'does not exist'}.")
    try:
        if path.suffix == ".safetensors":
            return _safetensors().load_file(path)
        return _to_numpy(_load(path), path)
    except (InputError, ImportError):
        raise
    except Exception as error:  # the readers raise whatever the bytes lead them to
        reason = f"which cannot be read ({type(error).__name__}): it is damaged or no such file"
        if code := re.search(r"nsupported (?:global: )?(?:GLOBAL|class) ([\w.]+)", str(error)):
            reason = f"which asks for {code[1]}, and only tensors and plain numbers are loaded, never code"
    raise InputError(f"{expected}, {reason}.")


def write_file(path: Path, content: dict[str, Any]) -> None:
    """Writes the file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    if path.suffix == ".safetensors":
        _safetensors().save_file(content, partial)
    else:
        import torch

        torch.save(_to_torch(content), partial)
    os.replace(partial, path)


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise InputError(
            "safetensors must be installed for .safetensors files: pip install '.[torch]', got no such package."
        ) from error
    return safetensors.numpy


def _load(path: Path) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old formats; what it refuses it raises
        return torch.load(path, map_location="cpu", weights_only=True)


def _to_numpy(value: Any, path: Path) -> Any:
    """Plain values, and tensors as arrays of their own."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized or value.dtype == torch.bfloat16:
            kind = "bfloat16" if value.dtype == torch.bfloat16 else f"{value.dtype} {value.layout}"
            raise InputError(f"IN must hold plain tensors of a type that NumPy has, got {kind} in {str(path)!r}.")
        return value.detach().numpy().copy(order="C")
    if isinstance(value, dict):
        return {key: _to_numpy(inner, path) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_to_numpy(inner, path) for inner in value]
    return value


def _to_torch(value: Any) -> Any:
    import torch

    if isinstance(value, np.ndarray):
        return torch.tensor(value)
    if isinstance(value, dict):
        return {key: _to_torch(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_torch(inner) for inner in value)
    return value
