"""Checkpoints: one safetensors file with JSON values in its header, written atomically.

After a kill or a full disk there is either the old file or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segue.errors import SegueError
from segue.files import atomic_write


def save_tensors(path: str | Path, tensors: dict[str, Tensor], values: dict[str, Any] | None = None) -> None:
    """Write tensors and JSON values to one file, atomically. Tensors that share storage are written separately."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    storages = set[int]()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        if tensor.numel() and storage in storages:
            tensors[name] = tensor.clone()
        storages.add(storage)
    with atomic_write(path) as temporary:
        save_file(tensors, str(temporary), {"values": json.dumps(values or {})})


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote; anything wrong with the file is a SegueError that names it."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise SegueError(f"{path} is missing: is this a folder that segue wrote?")
    try:
        with safe_open(str(path), framework="pt") as file:
            # Cloned because tensors of the mapped file are not aligned like torch's own.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            values = json.loads((file.metadata() or {}).get("values", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise SegueError(f"{path} is damaged or no safetensors file ({error}): copy it again or fit again") from error
    return tensors, values


def join_groups(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all groups in one dict, as GROUP.NAME."""
    return {f"{group}.{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


def take_group(tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    """The tensors of one group of those that `join_groups` put together, by their own names."""
    return {name.removeprefix(f"{group}."): t for name, t in tensors.items() if name.startswith(f"{group}.")}


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of processes that were killed while writing."""
    for path in folder.glob(".*.tmp"):
        if path.is_file():
            with suppress(OSError):
                path.unlink()


def load_into(model: torch.nn.Module, tensors: dict[str, Tensor], where: str | Path) -> None:
    """Copy weights into a model, after checking that names, shapes and types are exactly its own."""
    parameters = model.state_dict()
    shared = tied_names(model)
    missing = sorted(set(parameters) - set(tensors) - set(shared))
    unknown = sorted(set(tensors) - set(parameters))
    if missing or unknown:
        description = f"lacks {', '.join(missing[:3])}" if missing else f"has the unknown {', '.join(unknown[:3])}"
        raise SegueError(f"{where} does not fit its config.json: it {description}; were the two copied from different "
                         "models?")
    for name, tensor in tensors.items():
        if tensor.shape != parameters[name].shape:
            raise SegueError(f"{where}: '{name}' has shape {tuple(tensor.shape)}, config.json asks for "
                             f"{tuple(parameters[name].shape)}; were the two copied from different models?")
        if tensor.dtype.is_floating_point != parameters[name].dtype.is_floating_point:
            raise SegueError(f"{where}: '{name}' holds {tensor.dtype}, not numbers of the kind "
                             f"{parameters[name].dtype}")
        if tensor.dtype.is_floating_point and not bool(tensor.isfinite().all()):
            raise SegueError(f"{where}: '{name}' holds numbers that are not finite: copy it again or fit again")
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def tied_names(model: torch.nn.Module) -> dict[str, str]:
    """Tied tensors of the state dict: later name -> the first name of the same tensor."""
    first: dict[int, str] = {}
    tied = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
    return tied


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict with each tied tensor once."""
    shared = tied_names(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in shared}
