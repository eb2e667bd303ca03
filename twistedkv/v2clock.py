"""Time for the keys of the v2 API: while this member leads it tells all members when keys have come to their end.

A key's end is a moment of the wall clock, which the member that took the request has worked out. The leader compares it
with its own clock, twice a second, and once it has come says by an entry in the log what time it is: only by that the
key goes, on all members alike, and never before. The next leader goes on from there, since ends are moments and do not
begin anew.

Source: etcd ``server/etcdserver/server.go`` (sync), which says the time twice a second as long as any key has an end.
"""

from __future__ import annotations

from typing import Final, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.storage.directory import Directory
from twistedkv.waiting import Waiter

INTERVAL_S: Final = (
    0.25  # etcd looks every half of a second; a key shall go within one of its end, on a busy machine too
)

_log = Logger()


class TimedMember(Protocol):
    """What is needed of the member; see :class:`twistedkv.server.Member`."""

    directory: Directory

    @property
    def reactor(self) -> IReactorTime: ...

    @property
    def is_leader(self) -> bool: ...

    def propose_v2(self, fields: bytes, waiter: Waiter, *, leading: bool = False) -> None: ...


class V2Clock:
    """Says the time when it matters.

    Args:
        member: whose keys they are.
    """

    def __init__(self, member: TimedMember) -> None:
        self._member = member
        self._asked = False  # an entry is on its way
        self._loop = LoopingCall(self._look)
        self._loop.clock = member.reactor

    def start(self) -> None:
        """Begin to look."""
        self._loop.start(INTERVAL_S, now=False).addErrback(
            lambda failure: _log.failure("keys of the v2 API do not expire any more", failure)
        )

    def stop(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    def _look(self) -> None:
        member = self._member
        end_ns = member.directory.first_end_ns
        if end_ns is None or self._asked or not member.is_leader:
            return
        now_ns = int(member.reactor.seconds() * 1e9)
        if now_ns >= end_ns:
            self._asked = True
            member.propose_v2(Request(Method="SYNC", Time=now_ns).SerializeToString(), self, leading=True)

    # --- the answer; see Waiter --------------------------------------------------------------------------

    def reply(self, message: bytes) -> None:
        """It was applied."""
        self._asked = False

    def fail(self, error: BaseException) -> None:
        """It was not, most likely; the next look says it again."""
        self._asked = False
        _log.info("cannot tell the members what time it is: {error}", error=error)
