"""Games of chess: the moves of each as Portable Game Notation keeps them (PGN), with its result."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

BEGIN = re.compile(rb"(\xef\xbb\xbf)?\s*(%[^\n]*\n\s*)*\[[A-Z]\w* \"[^\n]*\"\]\s*\r?\n\s*\[")
TAG = re.compile(r'\[(\w+) "((?:[^"\\]|\\.)*)"\]\s*')
MOVE = r"(?:[KQRBN]?[a-h]?[1-8]?x?[a-h][1-8](?:=?[QRBN])?|O-O(?:-O)?)[+#]?[!?]*"  # Nf3, exd8=Q+, O-O
MOVES = re.compile(rf"{MOVE}( {MOVE}){{3,}}")  # of a game, one after the other
PLAYED = re.compile(rf"{MOVE}|\d+(?:[-x]\d+)+|[a-h][1-8][a-h][1-8][qrbn]?")  # or 32-28, of draughts, or e2e4
ASIDE = re.compile(r"\{[^}]*(?:\}|$)|;[^\n]*|(?m:^%[^\n]*)|\$\d+|\d+\.+|--")  # comments, glyphs, numbers of moves
WITHIN = re.compile(r"\([^()]*\)")  # what might have been played instead
RESULTS = ("1-0", "0-1", "1/2-1/2", "*")


def is_games(head: bytes) -> bool:
    """By tags at the beginning of a file, a line each, with a move further on."""
    return BEGIN.match(head) is not None and re.search(rb"\n\s*1\. ?(\{[^}]*\} ?)?[KQRBNa-hO]", head) is not None


def games_of(text: str) -> Iterator[tuple[int, list[str], str]]:
    """The line where each game begins, its moves without marks of how good they were, and its result ("" where it was
    not played to an end)."""
    line, at = 1, 0
    for game in re.split(r"(?m)(?<=\S)[ \t\r]*\n\s*\n(?=\[\w+ \")", text):
        begin = text.index(game, at)
        line += text.count("\n", at, begin)
        tags = dict(TAG.findall(game[: game.rfind('"]') + 2]))
        played = ASIDE.sub(" ", TAG.sub("", game))
        while played != (played := WITHIN.sub(" ", played)):
            pass
        words = [word.rstrip("!?") for word in played.split()]
        result = tags.get("Result") or next((word for word in words[-1:] if word in RESULTS), "")
        if moves := [word for word in words if word not in RESULTS]:
            yield line, moves, "" if result == "*" else result
        line, at = line + game.count("\n"), begin + len(game)


def are_moves(cells: Sequence[str]) -> bool:
    """Whether these are games, all moves of each with blanks between."""
    return bool(cells) and all(map(MOVES.fullmatch, cells))
