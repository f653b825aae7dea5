"""Files of weights (safetensors) and the configs that describe them: written whole, checked before memory is spent."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from semid_lib.workbench.atomic import fresh_file


def save_weights(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] = {}) -> None:
    """Write a safetensors file, whole or not at all; the same content always gives the same bytes.

    Parameters
    ----------
    path : str or Path
    tensors : mapping of str to numpy arrays, or of str to contiguous torch tensors
    metadata : mapping of str to str, optional

    Raises
    ------
    OSError
        If the file cannot be written; an older one is as it was.
    ValueError
        Naming the first torch tensor with a number that is not finite: `load_weights` would refuse it.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_weights(f"{folder}/a.safetensors", {"bias": np.zeros((2, 3), np.float32)})
    ...     shapes_of(f"{folder}/a.safetensors")
    {'bias': (2, 3)}
    """
    if all(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
        from safetensors.numpy import save_file
    else:
        from safetensors.torch import save_file  # type: ignore[assignment]

        _check_finite(path, tensors)  # else they could not be loaded
    with fresh_file(path) as partial:
        try:
            save_file(dict(tensors), partial, metadata=dict(metadata))
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
        if len(metadata) > 1:  # safetensors writes them in a random order
            with open(partial, "r+b") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
                header["__metadata__"] = dict(sorted(metadata.items()))
                file.seek(8)
                file.write(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size))


def mapped(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and metadata of a safetensors file; pages of an array are copied when they are written to."""
    from safetensors.torch import load_file  # that for NumPy reads all of it

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    return {name: tensor.numpy() for name, tensor in load_file(path).items()}, metadata


def shapes_of(path: str | Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a safetensors file; only its header is read.

    Raises
    ------
    ValueError
        If it is no such file, or its size is not that of its tensors.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def check_shapes(path: str | Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Hold shapes in a file against those that its config gives.

    Raises
    ------
    ValueError
        Naming the first tensor that is missing or has another shape.
    """
    found = shapes_of(path)
    for name, shape in expected.items():
        if found.get(name) != shape:
            held = "is missing" if name not in found else f"has shape {found[name]}"
            raise ValueError(f"{path}: tensor {name!r} {held}, expected shape {shape} by the config")


def load_weights(path: str | Path, device: Any = "cpu") -> dict[str, Any]:
    """The tensors of a safetensors file, mapped from it where the device allows.

    Raises
    ------
    ValueError
        If it is no such file, or naming the first tensor with a number that is not finite.
    """
    from safetensors.torch import load_file

    try:
        tensors = load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    _check_finite(path, tensors)
    return tensors


def _check_finite(path: str | Path, tensors: Mapping[str, Any]) -> None:
    import torch

    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.sum(dtype=torch.float64).isfinite():
            raise ValueError(f"{path}: tensor {name!r} holds numbers that are not finite")


def check_config(config, least: Mapping[str, float] = {}, below: Mapping[str, float] = {}) -> None:
    """Check types and ranges of a dataclass of integers, real numbers and tuples of integers.

    Parameters
    ----------
    config : dataclass instance
    least, below : mapping of str to number, optional
        Smallest values, by default 1 for integers, and bounds that real numbers stay under.

    Raises
    ------
    ValueError
        Naming the first field of another type, that is not finite, or out of range.
    """
    for field in fields(config):
        value, low, high = getattr(config, field.name), least.get(field.name), below.get(field.name, math.inf)
        if field.type is float:
            right = type(value) in (int, float) and (-math.inf if low is None else low) <= value < high
            wanted = "a number" + (f" of at least {low}" if low is not None else "")
            wanted += f" below {high}" if high < math.inf else ""
        elif field.type is int:
            low = 1 if low is None else low
            right, wanted = type(value) is int and low <= value < 2**63, f"an integer of at least {low}"
        else:
            right = isinstance(value, tuple) and len(value) and all(type(each) is int and each > 0 for each in value)
            wanted = "integers of at least 1"
        if not right:
            raise ValueError(f"{field.name} is {value!r}, expected {wanted}")


def digest(parts: Any) -> str:
    """A digest of nested lists, mappings, arrays, tensors and plain objects: 16 hexadecimal digits.

    Examples
    --------
    >>> digest([np.arange(3), {"a": None}]) == digest([np.arange(3), {"a": None}]) != digest([np.arange(4)])
    True
    """
    found = hashlib.sha256()
    for part in parts:
        _add(found, part)
    return found.hexdigest()[:16]


def _add(found: Any, part: Any) -> None:
    match part:
        case np.ndarray() if part.dtype.kind in "OUS":
            _add(found, part.tolist())
        case np.ndarray() | np.generic():
            found.update(f"{part.dtype} {part.shape}".encode())
            found.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8))
        case Mapping():
            _add(found, list(part.items()))
        case list() | tuple():
            found.update(f"{len(part)} of".encode())
            for each in part:
                _add(found, each)
        case str() | bytes() | int() | float() | None:
            found.update(repr(part).encode())
        case _ if hasattr(part, "detach"):  # a tensor; NumPy has no bfloat16
            found.update(str(part.dtype).encode())
            _add(found, (part.float() if "bfloat16" in str(part.dtype) else part).numpy(force=True))
        case _:
            _add(found, vars(part))
