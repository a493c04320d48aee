"""Learn a folder of text or code for a minute, then say what comes next.

    python examples/learn_and_continue.py FOLDER "the first words"
"""

from __future__ import annotations

import sys

import segue


def main(folder: str, prime: str, **settings: float) -> str:
    model = segue.fit(segue.read(folder), **settings)
    answer = model.continue_(prime, n=100, decoder="sample", temperature=0.8, seed=0)
    print(prime + answer.text)
    print(f"[{answer.note}]")
    return answer.text


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:], minutes=1)
