"""Who waits for a proposal, and for how long."""

from __future__ import annotations

from collections.abc import Container
from typing import Final, Protocol, cast

from twisted.internet.defer import Deferred

from twistedkv.compaction import Sweeper
from twistedkv.v2events import Event
from twistedkv.v2request import PlainSet

MOST_NOTED_BYTES: Final = 4096  # of an entry, whose hash is what it is found by
_MOST_SETS: Final = 1024  # at once


class Waiter(Protocol):
    """Whoever waits for a proposal: a call, or something inside the member."""

    def reply(self, message: bytes) -> None:
        """It was applied; the encoded response with its header."""

    def fail(self, error: BaseException) -> None:
        """It was refused, or nobody knows what became of it."""


class V2Waiter(Protocol):
    """Whoever waits for a request for keys of the v2 API."""

    def applied(self, event: Event) -> None:
        """It was applied."""

    def fail(self, error: BaseException) -> None:
        """It was refused, by a V2Error or another error, or nobody knows what became of it."""


class Outcome:
    """A waiter that fires a Deferred, with the encoded response or the error."""

    def __init__(self) -> None:
        self.deferred: Deferred[bytes] = Deferred()

    def reply(self, message: bytes) -> None:
        self.deferred.callback(message)

    def fail(self, error: BaseException) -> None:
        self.deferred.errback(error)


class Sweeping:
    """A waiter that waits for the rows of a compaction to be deleted, too."""

    def __init__(self, sweeper: Sweeper, revision: int, waiter: Waiter) -> None:
        self._sweeper = sweeper
        self._revision = revision
        self._waiter = waiter

    def reply(self, message: bytes) -> None:
        self._sweeper.swept(self._revision).addCallback(lambda _: self._waiter.reply(message))

    def fail(self, error: BaseException) -> None:
        self._waiter.fail(error)


class WaitingRoom:
    """The waiters by the id of their request, oldest first; a request's id is made for requests of one kind.

    Args:
        timeout_s: how long each may wait.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._waiters: dict[int, tuple[Waiter | V2Waiter, float]] = {}  # with the deadline, which grows with each
        self._sets: dict[bytes, PlainSet] = {}  # what some of them wait for, by the log entry that says so

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, request_id: int, waiter: Waiter | V2Waiter, now_s: float) -> None:
        """Have ``waiter`` wait from now on."""
        self._waiters[request_id] = (waiter, now_s + self._timeout_s)

    def take(self, request_id: int) -> Waiter | None:
        """The waiter for this request, which waits no more; None if it is another member's, or was told before."""
        waiting = self._waiters.pop(request_id, None)
        return None if waiting is None else cast(Waiter, waiting[0])

    def take_v2(self, request_id: int) -> V2Waiter | None:
        """The same for a request for keys of the v2 API."""
        waiting = self._waiters.pop(request_id, None)
        return None if waiting is None else cast(V2Waiter, waiting[0])

    def note_set(self, entry: bytes, plain: PlainSet) -> None:
        """Remember what ``entry`` says, until it is committed, or as long as there is room."""
        if len(self._sets) >= _MOST_SETS:
            self._sets.clear()
        self._sets[entry] = plain

    def take_set(self, entry: bytes) -> PlainSet | None:
        """What was noted of this entry; None if nothing was."""
        return self._sets.pop(entry, None) if self._sets and len(entry) <= MOST_NOTED_BYTES else None

    def expired(self, now_s: float) -> list[tuple[int, Waiter | V2Waiter]]:
        """Those whose time is up, with the ids of their requests; they wait no more."""
        late: list[tuple[int, Waiter | V2Waiter]] = []
        for request_id, (waiter, deadline_s) in self._waiters.items():
            if deadline_s > now_s:
                break
            late.append((request_id, waiter))
        for request_id, _ in late:
            del self._waiters[request_id]
        return late

    def up_to(self, request_id: int, but: Container[int] = ()) -> list[Waiter | V2Waiter]:
        """Those of requests up to this id, except for ``but``, which wait no more; ids grow with each request."""
        taken: list[Waiter | V2Waiter] = []
        for each in list(self._waiters):
            if each > request_id:
                break
            if each not in but:
                taken.append(self._waiters.pop(each)[0])
        return taken

    def empty(self) -> list[Waiter | V2Waiter]:
        """Everybody; nobody waits any more."""
        waiters, self._waiters = self._waiters, {}
        return [waiter for waiter, _ in waiters.values()]
