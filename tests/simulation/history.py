"""What clients were told, all of them: judged as soon as it is told, and key by key at the end."""

from __future__ import annotations

from math import inf
from typing import Any

from tests.simulation.linearizability import Kind, Operation, Value, refusal
from tests.simulation.truth import Truth, Violation


class History:
    """What clients were told, all of them."""

    def __init__(self, truth: Truth) -> None:
        self.revision = 0  # the highest one that anybody was told with a linearizable answer
        self.operations: dict[bytes, list[Operation]] = {}
        self.answers = 0
        self.unknown = 0
        self._moment = 0
        self._truth = truth

    def moment(self) -> int:
        """A number that grows."""
        self._moment += 1
        return self._moment

    def add(self, key: bytes, operation: Operation) -> None:
        """An operation is over; one without an answer counts as such."""
        self.operations.setdefault(key, []).append(operation)
        self.answers += operation.answered
        self.unknown += not operation.answered

    def told(self, revision: int, floor: int, *, changed: bool) -> None:
        """A linearizable answer was given.

        Args:
            floor: what :attr:`revision` was when the question was asked.
            changed: whether the answer is to a change, which has a revision of its own.

        Raises:
            Violation: it is an old one.
        """
        if revision < floor + changed:
            raise Violation(f"an answer of revision {revision}, and one of {floor} was there before the question")
        if revision > self._truth.revision:
            raise Violation(f"an answer of revision {revision}, and nobody has got beyond {self._truth.revision}")
        self.revision = max(self.revision, revision)

    def check(self) -> None:
        """Judge each key's history.

        Raises:
            Violation: one is not linearizable.
        """
        for key, operations in self.operations.items():
            refused = refusal(operations)
            if refused is not None:
                raise Violation(f"the history of {key!r} is not linearizable: {refused}")


class Attempt:
    """One operation of which the history is to be judged."""

    def __init__(self, history: History, kind: Kind, key: bytes, value: Value, expected: Value) -> None:
        self._history = history
        self._operation = Operation(kind, history.moment(), inf, value, expected)
        self._key = key
        self._floor = history.revision

    def answered(self, revision: int, *, changed: bool, seen: Any, swapped: bool | None = None) -> None:
        """It was answered.

        Raises:
            Violation: by something old.
        """
        ended = self._history.moment()
        self._history.add(self._key, self._operation._replace(ended=ended, seen=seen, swapped=swapped))
        self._history.told(revision, self._floor, changed=changed)

    def unknown(self) -> None:
        """Nobody knows what came of it."""
        if self._operation.kind is not Kind.GET:
            self._history.add(self._key, self._operation)
