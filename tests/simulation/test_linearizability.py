"""The checker of histories is itself checked: against histories that are known to be good or bad, and against brute
force."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations, permutations
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.linearizability import UNSEEN, Kind, Operation, Unseen, Value, effect, refusal

GET, PUT, DELETE, SWAP = Kind


def get(begun: int, ended: float, seen: Value | Unseen) -> Operation:
    return Operation(GET, begun, ended, seen=seen)


def put(begun: int, ended: float, value: bytes, seen: Value | Unseen = UNSEEN) -> Operation:
    return Operation(PUT, begun, ended, value, seen=seen)


def delete(begun: int, ended: float, seen: Value | Unseen = UNSEEN) -> Operation:
    return Operation(DELETE, begun, ended, seen=seen)


def swap(begun: int, ended: float, expected: Value, value: bytes, swapped: bool | None) -> Operation:
    return Operation(SWAP, begun, ended, value, expected, swapped=swapped)


class LinearizabilityTests(SynchronousTestCase):
    def good(self, *operations: Operation) -> None:
        self.assertIsNone(refusal(operations))

    def bad(self, *operations: Operation) -> None:
        self.assertIsNotNone(refusal(operations))

    def test_what_follows_each_other(self) -> None:
        """A read shows the last write that was answered before it began."""
        self.good(get(1, 2, None), put(3, 4, b"a"), get(5, 6, b"a"), delete(7, 8, b"a"), get(9, 10, None))
        self.bad(put(1, 2, b"a"), put(3, 4, b"b"), get(5, 6, b"a"))
        self.bad(put(1, 2, b"a"), get(3, 4, None))
        self.bad(put(1, 2, b"a"), delete(3, 4), get(5, 6, b"a"))

    def test_reads_at_the_same_time_as_a_write(self) -> None:
        """While a write is on its way a read may show it or not, but not take it back."""
        self.good(put(1, 10, b"a"), get(2, 3, None), get(4, 5, b"a"))
        self.bad(put(1, 10, b"a"), get(2, 3, b"a"), get(4, 5, None))
        self.good(put(1, 10, b"a"), get(2, 5, b"a"), get(3, 6, None))

    def test_nobody_reads_what_was_not_written(self) -> None:
        """A value comes from somewhere, and not before it was sent."""
        self.bad(get(1, 2, b"a"))
        self.bad(get(1, 2, b"a"), put(3, 4, b"a"))

    def test_lost_updates(self) -> None:
        """Of two writers who both saw the same value replaced by theirs, one is wrong."""
        self.bad(put(1, 2, b"a"), swap(3, 6, b"a", b"b", True), swap(4, 7, b"a", b"c", True))
        self.good(put(1, 2, b"a"), swap(3, 6, b"a", b"b", True), swap(4, 7, b"a", b"c", False))
        self.bad(put(1, 2, b"a"), swap(3, 4, b"a", b"b", False))
        self.bad(put(1, 2, b"a", None), put(3, 4, b"b", None))

    def test_a_write_without_an_answer_may_have_happened(self) -> None:
        """It may show late, it may never show, but once it has shown it stays."""
        self.good(put(1, inf, b"a"), get(2, 3, None), get(4, 5, None))
        self.good(put(1, inf, b"a"), get(2, 3, None), get(4, 5, b"a"))
        self.bad(put(1, inf, b"a"), get(2, 3, b"a"), get(4, 5, None))
        self.good(put(1, 2, b"a"), delete(3, inf), get(4, 5, b"a"), get(6, 7, None))
        self.bad(put(1, 2, b"a"), delete(3, inf), get(4, 5, None), get(6, 7, b"a"))

    def test_a_write_without_an_answer_happens_once(self) -> None:
        """A value that was replaced does not come back by itself."""
        self.bad(put(1, inf, b"a"), get(2, 3, b"a"), put(4, 5, b"b"), get(6, 7, b"b"), get(8, 9, b"a"))

    def test_a_swap_without_an_answer(self) -> None:
        """It happens only where it fits."""
        self.good(swap(1, inf, None, b"a", None), get(2, 3, b"a"))
        self.bad(put(1, 2, b"x"), swap(3, inf, None, b"a", None), get(4, 5, b"a"))
        self.good(put(1, 2, b"x"), swap(3, inf, None, b"a", None), delete(4, 5), get(6, 7, b"a"))

    def test_a_swap_that_fails_without_saying_why(self) -> None:
        """It may be the only sign of a write that nobody was shown."""
        self.good(put(1, 2, b"a"), put(3, inf, b"b"), swap(4, 5, b"a", b"c", False))
        self.bad(put(1, 2, b"a"), swap(4, 5, b"a", b"c", False))

    def test_the_two_readers_of_dekker(self) -> None:
        """Two reads that see two writes in opposite orders cannot both be right."""
        writes = (put(1, 20, b"a"), put(2, 21, b"b"))
        self.bad(*writes, get(3, 4, b"a"), get(5, 6, b"b"), get(7, 8, b"a"))
        self.good(*writes, get(3, 4, b"a"), get(5, 6, b"b"), get(7, 8, b"b"))

    def test_a_refusal_names_the_culprit(self) -> None:
        """What could be explained is told, and what could not."""
        stale = get(5, 6, b"a")
        found = refusal([put(1, 2, b"a"), put(3, 4, b"b"), stale, get(7, 8, b"b")])
        assert found is not None
        self.assertEqual(found.explained, (put(1, 2, b"a"), put(3, 4, b"b")))
        self.assertEqual(found.stuck, (stale,))

    def test_many_operations_at_once(self) -> None:
        """Two hundred writes that overlap, some without an answer, are judged in no time."""
        operations = []
        for number in range(200):
            ended = inf if number % 10 == 9 else number * 2 + 9
            operations.append(put(number * 2, ended, b"%d" % number))
        self.good(*operations, get(500, 501, b"197"))
        self.bad(*operations, get(500, 501, b"150"))

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(Kind), *[st.integers(0, 2)] * 3, st.booleans()), max_size=5), st.data())
    def test_brute_force_agrees(self, drawn: list[tuple[Kind, int, int, int, bool]], data: st.DataObject) -> None:
        """The search finds an order exactly if trying all of them does."""
        values: list[Value] = [None, b"a", b"b"]
        moments = data.draw(st.permutations(range(2 * len(drawn))))
        operations = []
        for position, (kind, seen, value, expected, answered) in enumerate(drawn):
            first, last = sorted(moments[2 * position : 2 * position + 2])
            written = None if kind in (GET, DELETE) else values[max(value, 1)]
            shown = values[seen] if answered and (kind is GET or last % 2) else UNSEEN
            swapped = bool(last % 3) if kind is SWAP and answered else None
            ended = last if answered else inf
            operations.append(Operation(kind, first, ended, written, values[expected], shown, swapped))
        self.assertEqual(refusal(operations) is None, _some_order_explains(operations))


def _some_order_explains(operations: Sequence[Operation]) -> bool:
    answered = [each for each in operations if each.answered]
    others = [each for each in operations if not each.answered]
    chosen = chain.from_iterable(combinations(others, count) for count in range(len(others) + 1))
    return any(_explains(order) for some in chosen for order in permutations([*answered, *some]))


def _explains(order: Sequence[Operation]) -> bool:
    state: Value = None
    for position, operation in enumerate(order):
        if any(later.ended < operation.begun for later in order[position + 1 :]):
            return False
        fits, state = effect(state, operation)
        if not fits:
            return False
    return True
