"""`verify`: check by program which instructions responses follow, for benchmarks in the format of IFEval and
FollowRAG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segue.errors import SegueError
from segue.kinds.base import opened
from segue.kinds.frame import json_lines
from segue.programs.verifiers import Following, following
from segue.progress import Shown

if TYPE_CHECKING:
    from rich.console import RenderableType

KEYS = (("prompt", "key"), ("prompt",), ("key",))  # by which a response finds its item, the first that both have


@dataclass
class VerifyReport(Shown):
    """The report of `verify`. items: number of checked responses. scores: IFEval's four, see `Following.scores`.
    families: scores by instruction. sources: the four scores by source, if the items name several. missing: number of
    items without a response, which are not counted."""

    items: int
    scores: dict[str, float]
    families: dict[str, dict[str, float]]
    sources: dict[str, dict[str, float]]
    missing: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("instruction", "asked", "strict", "loose", box=None)
        for name, row in self.families.items():
            table.add_row(name, f"{row['asked']:g}", f"{row['strict']:.1%}", f"{row['loose']:.1%}")
        lines = [f"{self.items:,} responses", *([f"{self.missing:,} items have no response and are left out"]
                                                if self.missing else [])]
        lines += [f"{where}{what}: {share:.1%}" for where, scores in
                  [("", self.scores), *((f"{source}: ", scores) for source, scores in self.sources.items())]
                  for what, share in scores.items()]
        return Group(table, Text("\n".join(lines)))


def verify(items: str | Path, responses: str | Path | None = None) -> VerifyReport:
    """Check responses to instructions, strictly and loosely.

    items: a file of JSON lines, or of one JSON list, packed or not, of objects with instruction_id_list and kwargs.
    responses: such a file of objects with "response" and the item's "prompt" (or "key"); default: they are among the
    items. A SegueError says which line of which file cannot be used.
    """
    instructions = [(place, row) for place, row in _read_objects(Path(items))]
    for place, row in instructions:
        names, arguments = row.get("instruction_id_list"), row.get("kwargs")
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)
                and isinstance(arguments, list) and len(names) == len(arguments)):
            raise SegueError(f"{items}: {place} has no instruction_id_list with as many kwargs: give a file of the "
                             "form of IFEval's")
        if malformed := [argument for argument in arguments if argument is not None and not isinstance(argument, dict)]:
            raise SegueError(f"{items}: {place} has kwargs that are no object ({malformed[0]!r}): write {{}} for none")
    matched_texts = [row.get("response") for _, row in instructions] if responses is None else \
        _match_responses(instructions, Path(responses))
    if responses is None and (silent := [place for (place, _), text in zip(instructions, matched_texts)
                                         if not isinstance(text, str)]):
        raise SegueError(f"{items}: {silent[0]} has no text 'response': give a file of responses")
    pairs = [(row, text) for (_, row), text in zip(instructions, matched_texts) if text is not None]
    if not pairs:
        raise SegueError(f"no item of {items} has a response in {responses or items}: prompts (or keys) must be alike")
    checked = following([row for row, _ in pairs], [text for _, text in pairs])
    return _report(checked, len(instructions) - len(pairs))


def _match_responses(instructions: Sequence[tuple[str, Mapping[str, Any]]], path: Path) -> list[str | None]:
    """The response to each item among those in a file; None where there is none."""
    def keys_of(row: Mapping[str, Any]) -> list[tuple[tuple[str, str], ...]]:
        return [tuple((key, str(row[key])) for key in keys) for keys in KEYS if all(key in row for key in keys)]

    texts: dict[tuple[tuple[str, str], ...], str] = {}
    for place, row in _read_objects(path):
        keys = keys_of(row)
        if not isinstance(row.get("response"), str) or not keys:
            raise SegueError(f"{path}: {place} has no text 'response' with a prompt or key: give one object a line, as "
                             '{"prompt": ..., "response": ...}')
        if keys[0] in texts:
            raise SegueError(f"{path}: {place} is a second response to one item: give one response to each, or write "
                             "the responses into the items")
        texts.update(dict.fromkeys(keys, row["response"]))
    return [next((texts[key] for key in keys_of(row) if key in texts), None) for _, row in instructions]


def _report(checked: Following, missing: int) -> VerifyReport:
    sources = sorted(set(checked.sources))
    return VerifyReport(len(checked.names), checked.scores(), checked.families(), {
        source: checked.scores(source) for source in sources} if len(sources) > 1 else {}, missing)


def _read_objects(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """The JSON objects of a file, each with its place in words."""
    with opened(path) as handle:
        raw = handle.read()
    entries: list[tuple[str, Any]]
    if raw.lstrip()[:1] == b"[":
        try:
            entries = [(f"entry {number}", row) for number, row in enumerate(json.loads(raw), 1)]
        except (ValueError, RecursionError) as error:
            raise SegueError(f"{path}: not JSON ({error}); is the file cut short?") from error
    else:
        entries = [(f"line {number}", value) for number, value in json_lines(path, raw.split(b"\n"), None)]
    if not entries:
        raise SegueError(f"{path} holds no items: give JSON lines")
    for place, row in entries:
        if not isinstance(row, dict):
            raise SegueError(f"{path}: {place} is no JSON object")
    return entries
