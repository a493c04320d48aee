"""`segue` and `python -m segue` are the command line."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """`segue.cli.main`; a Ctrl-C while that is still being imported ends as one does later."""
    try:
        from segue.cli import main as run
    except KeyboardInterrupt:
        print("segue: interrupted; nothing has begun", file=sys.stderr)
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
