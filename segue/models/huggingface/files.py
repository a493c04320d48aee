"""Read a Hugging Face model folder as plain files, config.json and safetensors; no code in it is ever executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from segue.errors import SegueError
from segue.files import read_json

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the folder's config.json; a SegueError if it does not name a model type."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SegueError(f"{folder} is not a folder: give the folder that holds config.json and model.safetensors")
    values = read_json(folder / "config.json")
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise SegueError(f"{folder / 'config.json'} names no model_type: this is not a Hugging Face model folder")
    return values


class Weights:
    """The tensors of a folder by name, loaded one at a time from one file or from shards; a SegueError if files are
    missing or broken."""

    def __init__(self, folder: str | Path) -> None:
        from safetensors import SafetensorError, safe_open

        folder = Path(folder)
        if (folder / INDEX).is_file():
            index = read_json(folder / INDEX)
            names = index.get("weight_map") if isinstance(index, dict) else None
            if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
                raise SegueError(f"{folder / INDEX} has no weight_map: fetch the folder again")
            files = sorted(set(names.values()))
        elif (folder / WHOLE).is_file():
            files = [WHOLE]
        else:
            pickled = sorted(path.name for path in folder.glob("*.bin"))
            hint = f"{pickled[0]} is a pickle, which can run code: convert it once, where you trust it, with " \
                "transformers' save_pretrained" if pickled else f"{WHOLE} is missing: fetch the folder again"
            raise SegueError(f"{folder} has no safetensors weights; {hint}")
        self.folder = folder
        self.where: dict[str, Any] = {}
        for file in files:
            if Path(file).name != file or not (folder / file).is_file():
                raise SegueError(f"{folder / INDEX} names the shard '{file}', which is not in the folder: "
                                 "fetch the folder again")
            try:
                handle = safe_open(folder / file, "pt")
            except (SafetensorError, OSError) as error:
                raise SegueError(f"{folder / file} is not a whole safetensors file ({error}): fetch it again") \
                    from error
            self.where |= dict.fromkeys(handle.keys(), handle)

    def __contains__(self, name: str) -> bool:
        return name in self.where

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.where)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.where:
            raise SegueError(f"{self.folder} has no tensor '{name}': its weights do not fit its config.json")
        return self.where[name].get_tensor(name)
