"""The database's size, and the quota that it must not outgrow.

Source: etcd ``server/storage/quota.go`` and ``server/etcdserver/api/v3rpc/quota.go``: a write that would not fit is
refused before it is proposed, and the NOSPACE alarm is raised, which from then on every member obeys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.errors import NoSpaceError
from twistedkv.storage.backend import Size

REFRESH_S = 1.0

_log = Logger()


class Quota:
    """Knows about how large the database is, and refuses what would not fit.

    Args:
        limit_bytes: the quota; 0 or less is none.
        measure: asks the database for its size.
        backlog_bytes: what is on its way to the database.
        raise_alarm: raises NOSPACE through the log.
        clock: the size is asked for once a second.
    """

    def __init__(
        self,
        limit_bytes: int,
        measure: Callable[[], Deferred[Size]],
        backlog_bytes: Callable[[], int],
        raise_alarm: Callable[[], Deferred[Any]],
        clock: IReactorTime,
    ) -> None:
        self.size = Size(0, 0)  # as of the last look
        self._limit_bytes = limit_bytes
        self._measure = measure
        self._backlog_bytes = backlog_bytes
        self._raise_alarm = raise_alarm
        self._clock = clock
        self._raising = False
        self._next: IDelayedCall | None = None
        self._stopped = False

    @property
    def estimated_bytes(self) -> int:
        """The size of the database with what is on its way there."""
        return self.size.total + self._backlog_bytes()

    def start(self) -> None:
        """Look at the size now, and then once a second."""
        self._next = None
        self._measure().addCallbacks(self._known, self._unknown)

    def stop(self) -> None:
        """Look no more."""
        self._stopped = True
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def check(self, cost_bytes: int) -> None:
        """Refuse a write of about so many bytes if the database would outgrow its quota, and raise the alarm.

        Raises:
            NoSpaceError: it would.
        """
        if self._limit_bytes <= 0 or self.estimated_bytes + cost_bytes < self._limit_bytes:
            return
        if not (self._raising or self._stopped):
            self._raising = True
            used = self.estimated_bytes
            _log.warn("the database has {used} bytes, its quota is {quota}", used=used, quota=self._limit_bytes)
            self._raise_alarm().addErrback(self._not_raised).addBoth(self._raised)
        raise NoSpaceError

    def _raised(self, _: Any) -> None:
        self._raising = False

    def _not_raised(self, failure: Failure) -> None:
        _log.warn("cannot raise the NOSPACE alarm: {error}", error=failure.value)

    def _known(self, size: Size) -> None:
        self.size = size
        self._again()

    def _unknown(self, failure: Failure) -> None:
        if not self._stopped:
            _log.error("cannot tell the size of the database: {error}", error=failure.value)
        self._again()

    def _again(self) -> None:
        if not self._stopped:
            self._next = self._clock.callLater(REFRESH_S, self.start)
