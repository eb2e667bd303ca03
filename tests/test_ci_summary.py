"""The last line of a CI run says what the tests said."""

from __future__ import annotations

import runpy
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

_SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "summary.py"


class SummaryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.summarise = runpy.run_path(str(_SCRIPT))["summarise"]

    def test_passed(self) -> None:
        """A good run counts what passed, and skipped tests as nothing."""
        output = "noise\nRan 12 tests in 0.034s\n\nPASSED (skips=2, successes=10)\n"
        self.assertEqual(self.summarise(output, 0), ("10 passed, 0 failed", 0))

    def test_failed(self) -> None:
        """Failures, errors and unexpected successes have all failed."""
        output = "Ran 9 tests in 1.000s\n\nFAILED (failures=1, errors=2, unexpectedSuccesses=1, successes=5)\n"
        self.assertEqual(self.summarise(output, 2), ("5 passed, 4 failed", 1))

    def test_a_failed_check_is_a_failure(self) -> None:
        """A run that ended before any test, or although all tests passed, has failed."""
        self.assertEqual(self.summarise("ruff: 1 error\n", 2), ("0 passed, 1 failed", 1))
        self.assertEqual(self.summarise("PASSED (successes=3)\n", 2), ("3 passed, 1 failed", 1))

    def test_no_tests_is_a_failure(self) -> None:
        """Nothing run is nothing proven."""
        self.assertEqual(self.summarise("Ran 0 tests in 0.000s\n\nPASSED\n", 0), ("0 passed, 1 failed", 1))
