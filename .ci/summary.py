"""Reduces the output of ``make test`` to ``N passed, N failed`` and an exit status.

Takes make's exit status as its argument and the output on standard input. Trial ends a run with ``PASSED (...)`` or
``FAILED (...)``, with a count of each outcome in the brackets; skipped tests and expected failures are neither passed
nor failed. A make that failed without a failed test (a check, or no tests at all) counts as one failure, so that the
line never looks well when the run was not.
"""

from __future__ import annotations

import re
import sys

_RESULT = re.compile(r"^(?:PASSED|FAILED) \((.*)\)$", re.MULTILINE)
_BAD = ("failures", "errors", "unexpectedSuccesses")


def summarise(output: str, make_status: int) -> tuple[str, int]:
    """The last line, and the exit status that goes with it."""
    passed = failed = 0
    for result in _RESULT.finditer(output):
        counts = {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", result[1])}
        passed += counts.get("successes", 0)
        failed += sum(counts.get(name, 0) for name in _BAD)
    if not failed and (make_status != 0 or not passed):
        failed = 1
    return f"{passed} passed, {failed} failed", int(failed > 0)


if __name__ == "__main__":
    line, status = summarise(sys.stdin.read(), int(sys.argv[1]))
    sys.stdout.write(line + "\n")
    raise SystemExit(status)
