"""Games: the moves of each as Portable Game Notation keeps them (PGN, of chess), with its result, or a game a line; and
as Smart Game Format does (SGF, of Go and its like)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from textwrap import wrap

BEGIN = re.compile(rb"(\xef\xbb\xbf)?\s*(%[^\n]*\n\s*)*\[[A-Z]\w* \"[^\n]*\"\]\s*\r?\n\s*\[")
TAG = re.compile(r'\[(\w+) "((?:[^"\\]|\\.)*)"\]\s*')
MOVE = r"(?:[KQRBN]?[a-h]?[1-8]?x?[a-h][1-8](?:=?[QRBN])?|O-O(?:-O)?)[+#]?[!?]*"  # Nf3, exd8=Q+, O-O
MOVES = re.compile(rf"{MOVE}( {MOVE}){{3,}}")  # of a game, one after the other
PLAYED = re.compile(rf"{MOVE}|\d+(?:[-x]\d+)+|[a-h][1-8][a-h][1-8][qrbn]?")  # or 32-28, of draughts, or e2e4
ASIDE = re.compile(r"\{[^}]*(?:\}|$)|;[^\n]*|(?m:^%[^\n]*)|\$\d+|\d+\.+|--")  # comments, glyphs, numbers of moves
WITHIN = re.compile(r"\([^()]*\)")  # what might have been played instead
LISTED = re.compile(rf"{MOVE}|[a-h][1-8][a-h][1-8][qrbn]?")  # of chess, in lines without tags
RESULTS = ("1-0", "0-1", "1/2-1/2", "*")
SGF = re.compile(rb"(\xef\xbb\xbf)?\s*\(\s*;\s*(?:[A-Z]{1,2}\s*\[)")
PROPERTY = re.compile(r"([()])|([A-Z]+)\s*((?:\[(?:[^\]\\]|\\.)*\]\s*)+)", re.DOTALL)  # B[pd], C[It is \[bad\]]
STONE = re.compile(r"[BW](?:[a-zA-Z]{2})?")  # Bpd, or B where nobody plays


def is_games(head: bytes) -> bool:
    """By tags at the beginning of a file, a line each, with a move further on; or by lines of nothing but moves."""
    if SGF.match(head) is not None:
        return re.search(rb"[^A-Za-z][BW]\s*\[[a-zA-Z]{2}\]", head) is not None
    if BEGIN.match(head) is None:
        lines = [line.decode("ascii", "replace") for line in head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 21)[:20]]
        games = [moves_in(line) for line in (lines[:-1] if len(lines) > 1 else lines) if line.strip()]
        return len(games) > 1 and all(len(game) > 3 and all(map(LISTED.fullmatch, game)) for game in games)
    return re.search(rb"\n\s*1\. ?(\{[^}]*\} ?)?[KQRBNa-hO]", head) is not None


def moves_in(line: str) -> list[str]:
    """The moves of a game in a line, without what numbers them, marks of how good they were and the result."""
    return [word.rstrip("!?") for word in ASIDE.sub(" ", line).split() if word not in RESULTS]


def as_pgn(moves: Sequence[str], event: str) -> str:
    """A game in Portable Game Notation; how it ended, and who played, is not known."""
    tags = {"Event": event.replace("\\", "").replace('"', "'"), "Site": "?", "Date": "????.??.??", "Round": "?",
            "White": "?", "Black": "?", "Result": "*"}
    played = [f"{i // 2 + 1}. {move}" if i % 2 == 0 else move for i, move in enumerate(moves)]
    return "\n".join([*(f'[{name} "{said}"]' for name, said in tags.items()), "",
                      *wrap(" ".join([*played, "*"]), 79, break_long_words=False, break_on_hyphens=False), "", ""])


def games_of(text: str) -> Iterator[tuple[int, list[str], str]]:
    """The line where each game begins, its moves without marks of how good they were, and its result ("" where it was
    not played to an end)."""
    if SGF.match(text[:4096].encode()):
        yield from _of_sgf(text)
        return
    if not BEGIN.match(text[:4096].encode()):
        for number, line_text in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
            result = next((word for word in line_text.split()[-1:] if word in RESULTS), "")
            if moves := moves_in(line_text):
                yield number, moves, "" if result == "*" else result
        return
    line, position = 1, 0
    for game in re.split(r"(?m)(?<=\S)[ \t\r]*\n\s*\n(?=\[\w+ \")", text):
        start = text.index(game, position)
        line += text.count("\n", position, start)
        tags = dict(TAG.findall(game[: game.rfind('"]') + 2]))
        played = ASIDE.sub(" ", TAG.sub("", game))
        while played != (played := WITHIN.sub(" ", played)):
            pass
        words = [word.rstrip("!?") for word in played.split()]
        result = tags.get("Result") or next((word for word in words[-1:] if word in RESULTS), "")
        if moves := [word for word in words if word not in RESULTS]:
            yield line, moves, "" if result == "*" else result
        line, position = line + game.count("\n"), start + len(game)


def _of_sgf(text: str) -> Iterator[tuple[int, list[str], str]]:
    """Of what might have been played, the first line, which is the game; who won is the result. Moves are Bpd, Wdd."""
    depth, line, position, start = 0, 1, 0, 1
    moves, result, main_line_ended = list[str](), "", False
    for token in PROPERTY.finditer(text):
        line, position = line + text.count("\n", position, token.start()), token.start()
        bracket, name, values = token.groups()
        if bracket == "(":
            if depth == 0:
                start, moves, result, main_line_ended = line, [], "", False
            depth += 1
        elif bracket == ")":
            depth, main_line_ended = max(depth - 1, 0), True
            if depth == 0 and moves:
                yield start, moves, result
                moves = []
        elif name in ("B", "W") and not main_line_ended:
            place = values.strip()[1:-1].strip()
            moves.append(name if place == "tt" else f"{name}{place}")
        elif name == "RE" and values[1:2] in ("B", "W"):
            result = values[1]
    if moves:  # a file that is cut
        yield start, moves, result


def are_moves(cells: Sequence[str]) -> bool:
    """Whether these are games, all moves of each with blanks between."""
    return bool(cells) and all(map(MOVES.fullmatch, cells))
