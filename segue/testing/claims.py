"""The checker of claims."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

from segue.papers.base import SCALES, Claim, Report, run_claim
from segue.testing.contract import ContractBroken


def check_claim(claim: Claim) -> Report:
    """Run a claim at smoke scale and check it; `ContractBroken` says what fails. Returns the report.

    It says what it claims and by which rule; its table has rows of plain values; smoke scale gives no verdict; the
    picture is drawn; a second run finds every cell done and gives the same table; `judge` is a pure function that
    answers with one of the three verdicts and a reason.
    """
    def that(condition: bool, message: str) -> None:
        if not condition:
            raise ContractBroken(f"{claim.slug}: {message}")

    that(bool(claim.statement.strip() and claim.rule.strip()), "it has no statement or no rule")
    that("smoke" in claim.scales and set(claim.scales) <= set(SCALES), f"its scales are {claim.scales}")
    with tempfile.TemporaryDirectory() as folder:
        report = run_claim(claim, "smoke", out=folder, quiet=True)
        that(bool(report.table), "its table is empty")
        that(json.loads(json.dumps(report.table)) == report.table, "its table holds more than plain values")
        that(report.verdict is None, "smoke scale must give no verdict")
        picture = Path(report.picture or folder)
        that(picture.is_file() and picture.read_bytes().startswith(b"\x89PNG"), "it drew no picture")
        saved = json.loads((Path(folder) / f"{claim.slug}-smoke.json").read_text(encoding="utf-8"))
        that(saved["table"] == report.table, "the saved table is another")
        again = run_claim(claim, "smoke", out=folder, quiet=True)
        that([list(row) for row in again.table] == [list(row) for row in report.table], "a second run has other rows")
    table = copy.deepcopy(report.table)
    try:
        first, second = claim.judge(table), claim.judge(table)
    except (KeyError, IndexError, StopIteration, ValueError, ZeroDivisionError):
        return report  # a rule may need rows that only larger scales have
    that(first == second and table == report.table, "judge is no pure function of the table")
    that(first[0] in ("confirmed", "refuted", "inconclusive") and bool(first[1]), f"judge answers {first}")
    return report
