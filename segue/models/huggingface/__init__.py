"""Models of the Hugging Face world: converted to native stacks where the family is known, adapted where not."""

from __future__ import annotations

from segue.models.huggingface.files import is_huggingface
from segue.models.huggingface.native import FAMILIES, Info, from_huggingface, to_huggingface

__all__ = ["FAMILIES", "Info", "from_huggingface", "is_huggingface", "to_huggingface"]
