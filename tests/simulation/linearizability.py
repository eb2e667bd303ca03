"""Whether a history of one key is linearizable: whether its operations can be put into one order that explains all of
their answers, in which each takes effect between the moment it began and the moment it was answered.

The search is the one of Wing & Gong (Testing and Verifying Concurrent Objects, 1993), with the states that were tried
remembered as in Lowe (Testing for linearizability, 2017). Operations on different keys can be judged apart, since a
history is linearizable if that of each object is (Herlihy & Wing 1990, locality); callers split theirs.

An operation without an answer may have taken effect at any moment after it began, or never.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from math import inf
from typing import NamedTuple

Value = bytes | None  # None: the key does not exist


class Kind(Enum):
    """What an operation does to the key."""

    GET = "get"
    PUT = "put"
    DELETE = "delete"
    SWAP = "swap"  # put ``value`` if the key has ``expected``, else get


class Unseen(Enum):
    """In place of a value that the answer did not show."""

    UNSEEN = "unseen"


UNSEEN = Unseen.UNSEEN


class Operation(NamedTuple):
    """One operation on the key, and its answer if there was one."""

    kind: Kind
    begun: int  # a number that grows with each beginning and each answer of the history
    ended: float  # likewise; inf: there was no answer
    value: Value = None  # put by it
    expected: Value = None  # by a SWAP
    seen: Value | Unseen = UNSEEN  # the value that the answer says the key had before
    swapped: bool | None = None  # what the answer says of a SWAP; None: there was none

    @property
    def answered(self) -> bool:
        """Whether its answer came."""
        return self.ended != inf


class Refused(NamedTuple):
    """Why a history is not linearizable."""

    explained: tuple[Operation, ...]  # the longest order that was found to make sense
    stuck: tuple[Operation, ...]  # the answered operations that no longer fit behind it


def effect(state: Value, operation: Operation) -> tuple[bool, Value]:
    """Whether ``operation`` can have been answered so by a key in ``state``, and the state after it."""
    seen = operation.seen
    if seen is not UNSEEN and seen != state:
        return False, state
    if operation.kind is Kind.GET:
        return True, state
    if operation.kind is Kind.SWAP:
        swaps = state == operation.expected
        if operation.swapped is not None and operation.swapped is not swaps:
            return False, state
        return True, operation.value if swaps else state
    return True, operation.value


def without_idle(operations: Sequence[Operation]) -> list[Operation]:
    """``operations`` without those that had no answer and of which no answer shows anything: they explain nothing.

    A value that nobody was shown can be left out of any order if whoever looks at the key behind it would have been
    shown it. A swap that failed and does not say by what looks and is shown nothing: then all of them are kept.
    """
    if any(each.swapped is False and each.seen is UNSEEN for each in operations):
        return list(operations)
    shown = {each.seen for each in operations if each.answered and each.seen is not UNSEEN}
    shown |= {each.expected for each in operations if each.kind is Kind.SWAP}
    return [
        each
        for each in operations
        if each.answered or each.kind is Kind.DELETE or (each.kind is not Kind.GET and each.value in shown)
    ]


def refusal(operations: Sequence[Operation], state: Value = None) -> Refused | None:
    """Why the history of a key that begins in ``state`` is not linearizable; None if it is."""
    return _Search(without_idle(operations)).run(state)


class _Event:
    """A beginning or an answer, in a list from which both of an operation are taken and put back."""

    __slots__ = ("after", "before", "end", "number")

    def __init__(self, number: int) -> None:
        self.number = number  # of the operation
        self.end: _Event | None = None  # its answer, if this is a beginning that has one
        self.before: _Event | None = None
        self.after: _Event | None = None


class _Search:
    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self._head = _Event(-1)
        self._begins: set[_Event] = set()
        moments: list[tuple[float, _Event]] = []
        for number, operation in enumerate(operations):
            begin = _Event(number)
            self._begins.add(begin)
            moments.append((operation.begun, begin))
            if operation.answered:
                begin.end = _Event(number)
                moments.append((operation.ended, begin.end))
        last = self._head
        for _, event in sorted(moments, key=lambda moment: moment[0]):
            last.after, event.before = event, last
            last = event
        self._unanswered = sum(operation.answered for operation in operations)  # answers that are not explained yet

    def run(self, state: Value) -> Refused | None:
        operations = self._operations
        taken = 0  # bits: the operations that are in the order so far
        tried: set[tuple[int, Value]] = set()
        order: list[tuple[_Event, Value]] = []
        longest: list[int] = []
        event = self._head.after
        while self._unanswered:
            if event is not None and event in self._begins:
                fits, after = effect(state, operations[event.number])
                if fits and (attempt := (taken | 1 << event.number, after)) not in tried:
                    tried.add(attempt)
                    order.append((event, state))
                    taken, state = attempt
                    self._take(event)
                    if len(order) > len(longest):
                        longest = [each.number for each, _ in order]
                    event = self._head.after
                else:
                    event = event.after
                continue
            # An answer whose operation is not in the order: nothing more can come before it. Try another order.
            if not order:
                return self._refused(longest)
            event, state = order.pop()
            taken &= ~(1 << event.number)
            self._put_back(event)
            event = event.after
        return None

    def _refused(self, longest: Sequence[int]) -> Refused:
        explained = set(longest)
        rest = [each for number, each in enumerate(self._operations) if number not in explained and each.answered]
        first_answer = min(each.ended for each in rest)
        stuck = tuple(each for each in rest if each.begun <= first_answer)
        return Refused(tuple(self._operations[number] for number in longest), stuck)

    def _take(self, event: _Event) -> None:
        for each in (event, event.end):
            if each is not None:
                if each.before is not None:
                    each.before.after = each.after
                if each.after is not None:
                    each.after.before = each.before
        self._unanswered -= event.end is not None

    def _put_back(self, event: _Event) -> None:
        for each in (event.end, event):  # the other way round
            if each is not None:
                if each.before is not None:
                    each.before.after = each
                if each.after is not None:
                    each.after.before = each
        self._unanswered += event.end is not None
