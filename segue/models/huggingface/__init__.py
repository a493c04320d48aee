"""Hugging Face models: converted to native stacks where the family is known, otherwise run by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from segue.errors import SegueError, require
from segue.models.base import Decodable
from segue.models.huggingface.files import read_config
from segue.models.huggingface.native import FAMILIES, Info, from_huggingface, to_huggingface

__all__ = ["FAMILIES", "Info", "adapt", "from_huggingface", "open_huggingface", "to_huggingface"]


def adapt(folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """Load a folder's model to be run by transformers (extra `hf`): a
    `segue.models.huggingface.adapter.HuggingFaceModel`, or a
    `segue.models.huggingface.seq2seq.HuggingFaceEncoderDecoder`."""
    transformers = require("transformers", extra="hf")
    from segue.models.huggingface.adapter import HuggingFaceModel
    from segue.models.huggingface.seq2seq import HuggingFaceEncoderDecoder

    known = transformers.models.auto.modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    values = read_config(folder)
    seq2seq = values["model_type"] in known and values.get("is_encoder_decoder", True)
    return (HuggingFaceEncoderDecoder if seq2seq else HuggingFaceModel)(folder, dtype, device)


def open_huggingface(folder: str | Path) -> tuple[Decodable, Info]:
    """Load a folder's model natively if its family is known, else to be run by transformers; a SegueError says why
    neither works."""
    values = read_config(folder)
    try:
        return from_huggingface(folder)
    except SegueError as native:
        try:
            return adapt(folder), Info.of(values)
        except SegueError as adapted:
            raise SegueError(f"{adapted}; and not natively: {native}" if values["model_type"] in FAMILIES
                             else str(adapted)) from native
