"""Waiting for an index."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedkv.applywait import ApplyWait


class ApplyWaitTests(SynchronousTestCase):
    """Who waits for the state."""

    def test_told_in_order_of_index_then_of_asking(self) -> None:
        """Each is told once, when its index or a later one is applied."""
        wait, told = ApplyWait(), list[str]()
        for index, name in ((5, "b"), (3, "a"), (5, "c"), (9, "d")):
            wait.add(index, lambda name=name: told.append(name))  # type: ignore[misc]
        wait.applied(2)
        self.assertEqual((told, len(wait)), ([], 4))
        wait.applied(7)
        wait.applied(7)
        self.assertEqual((told, len(wait)), (["a", "b", "c"], 1))

    def test_who_is_told_may_wait_again(self) -> None:
        """For an index that is reached it is told at once; for a later one it waits."""
        wait, told = ApplyWait(), list[int]()

        def reached() -> None:
            told.append(1)
            if len(told) < 3:
                wait.add(4 + len(told), reached)

        wait.add(4, reached)
        wait.applied(5)
        self.assertEqual((len(told), len(wait)), (2, 1))
