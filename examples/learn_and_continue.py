"""Learn a folder of text or code for a minute, then say what comes next.

    python examples/learn_and_continue.py FOLDER "the first words"
"""

from __future__ import annotations

import sys

import segue


def main(folder: str, prime: str, minutes: float = 1.0) -> None:
    data = segue.read(folder)
    model = segue.fit(data, minutes=minutes)
    print(prime + model.continue_(prime, n=100, decoder="sample", seed=0).text)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
