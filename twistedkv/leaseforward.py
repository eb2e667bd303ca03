"""Renewals and questions about leases go to the leader, which alone counts their time, over its peer port.

They do not go through the log. What fails on the way is asked again, of whoever leads by then, until the time of a
request is over: renewing twice does no harm. What is on its way at once is bounded. A few questions follow each other
on connections that are kept; one that is not answered soon, because its lease has ended and is about to be revoked,
makes room for others, so that a lease that dies does not hold up those that live.

Source: etcd ``server/etcdserver/v3_server.go`` (LeaseRenew, LeaseTimeToLive, waitLeader) and
``server/lease/leasehttp/http.go``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from google.protobuf.message import DecodeError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.errors import LeaseNotFoundError, NoLeaderError, RequestTimeoutError, StoppedError
from twistedkv.leaseprimary import NotPrimaryError, PrimaryLessor, PrimaryMember, until
from twistedkv.pb.lease_pb2 import LeaseInternalRequest, LeaseInternalResponse
from twistedkv.pb.rpc_pb2 import (
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
)
from twistedkv.peering import Reply, Transport

LEASES_PATH: Final = "/leases"
LEASES_INTERNAL_PATH: Final = "/leases/internal"
PROTOBUF: Final = "application/protobuf"
NOT_FOUND: Final = b"lease not found"  # etcd lessor.go, ErrLeaseNotFound

RETRY_S: Final = 0.05  # between two attempts; later releases of etcd wait as long, 3.5.1 does not
BRISK: Final = 4  # questions on their way that were not slow yet: as many connections are kept (protocols/peer.py)
SLOW_S: Final = 0.1
MOST: Final = 48  # questions on their way, slow ones included; a few more are for others than leases

T = TypeVar("T")

_log = Logger()


class ForwardMember(PrimaryMember, Protocol):
    """What is needed of the member; see :class:`twistedkv.server.Member`."""

    member_id: int
    timeout_s: float
    leader_changes: list[Callable[[], None]]

    @property
    def reactor(self) -> IReactorTime: ...

    @property
    def peers(self) -> Transport: ...

    @property
    def leader(self) -> int: ...

    @property
    def stopped(self) -> bool: ...

    def when_leader(self, known: Callable[[], None]) -> Callable[[], None]: ...


class LeaseForward:
    """The leases of the cluster, as any member answers for them.

    Args:
        member: this one.
        primary: its own lessor, for the time when it leads.
    """

    def __init__(self, member: ForwardMember, primary: PrimaryLessor) -> None:
        self._member = member
        self._primary = primary
        self._window = Window(member.reactor)

    def renew_at_once(self, lease_id: int) -> int | None:
        """The TTL, if this member leads and need not wait for anything; None if :meth:`renew` has to.

        Raises:
            LeaseNotFoundError: there is no such lease.
        """
        return self._primary.renew_at_once(lease_id)

    def renew(self, lease_id: int) -> Deferred[int]:
        """Give a lease all of its time again, wherever that is counted; the TTL. Cancelling ends the attempts.

        Fails with :class:`LeaseNotFoundError`, or with :class:`NoLeaderError`, :class:`RequestTimeoutError` or
        :class:`StoppedError`, after which the lease may have been renewed or not.
        """
        body = LeaseKeepAliveRequest(ID=lease_id).SerializeToString()
        return self._in_time(
            self._at_primary(
                lambda: self._primary.renew(lease_id), LEASES_PATH, body, partial(_renewed, lease_id=lease_id)
            )
        )

    def time_to_live(self, lease_id: int, keys: bool) -> Deferred[LeaseTimeToLiveResponse]:
        """What is left of a lease, without a header. Fails as :meth:`renew` does.

        Args:
            keys: whether the answer names the keys that hang on it.
        """
        request = LeaseTimeToLiveRequest(ID=lease_id, keys=keys)
        body = LeaseInternalRequest(LeaseTimeToLiveRequest=request).SerializeToString()
        return self._in_time(
            self._at_primary(
                lambda: self._primary.time_to_live(lease_id, keys),
                LEASES_INTERNAL_PATH,
                body,
                partial(_described, lease_id=lease_id),
            )
        )

    def _in_time(self, attempts: Coroutine[Any, Any, T]) -> Deferred[T]:
        member = self._member

        def too_late(_: Any, timeout_s: float) -> Failure:
            return Failure(RequestTimeoutError() if member.leader else NoLeaderError())

        return Deferred.fromCoroutine(attempts).addTimeout(member.timeout_s, member.reactor, too_late)

    async def _at_primary(
        self, here: Callable[[], Coroutine[Any, Any, T]], path: str, body: bytes, read: Callable[[bytes], T]
    ) -> T:
        """The leader's answer, whoever leads.

        Args:
            here: answers if it is this member.
            read: takes the body of another member's answer; a ValueError if it is none.
        """
        member = self._member
        while not member.stopped:
            leader = member.leader
            if not leader:
                await until(member.when_leader)
            elif leader == member.member_id:
                try:
                    return await here()
                except NotPrimaryError:
                    if member.leader == leader and not member.stopped:  # elected just now
                        await until(self._when_changed)
            else:
                reply = await self._window.ask(partial(self._ask, leader, path, body))
                if reply is not None:
                    try:
                        return _content(reply, read)
                    except ValueError as error:
                        _log.debug("{leader:x} has no answer about a lease: {error}", leader=leader, error=error)
                if member.leader == leader:
                    await deferLater(member.reactor, RETRY_S)
        raise StoppedError

    def _ask(self, leader: int, path: str, body: bytes) -> Deferred[Reply | None]:
        return Question(self._member, leader, path, body).reply

    def _when_changed(self, tell: Callable[[], None]) -> Callable[[], None]:
        """Call ``tell`` when this member begins to count the time of leases, or another one leads."""
        lists = (self._member.leases.changes, self._member.leader_changes)

        def cancel() -> None:
            for each in lists:
                if changed in each:
                    each.remove(changed)

        def changed() -> None:
            cancel()
            tell()

        for each in lists:
            each.append(changed)
        return cancel


class Question:
    """One question to the leader, given up when it leads no more.

    ``reply`` fires with None if there is no answer. Cancelling it gives up, too.
    """

    def __init__(self, member: ForwardMember, leader: int, path: str, body: bytes) -> None:
        self.reply: Deferred[Reply | None] = Deferred(lambda _: self._end())
        self._member = member
        self._leader = leader
        self._over = False
        member.leader_changes.append(self._look)
        self._asked = member.peers.ask(leader, "POST", path, body, PROTOBUF, member.timeout_s)
        self._asked.addCallbacks(self._answered, self._failed)
        self._asked.addErrback(lambda failure: _log.failure("asking the leader", failure))

    def _answered(self, reply: Reply) -> None:
        if not self._over:
            self._end()
            self.reply.callback(reply)

    def _failed(self, failure: Failure) -> None:
        if not self._over:
            _log.debug("{leader:x} does not answer: {reason}", leader=self._leader, reason=failure.getErrorMessage())
            self._end()
            self.reply.callback(None)

    def _look(self) -> None:
        if not self._over and self._member.leader != self._leader:
            self._end()
            self.reply.callback(None)

    def _end(self) -> None:
        self._over = True
        if self._look in self._member.leader_changes:
            self._member.leader_changes.remove(self._look)
        self._asked.cancel()  # of no effect once it has fired


class Window:
    """How many questions are on their way, and who waits to ask."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._brisk = 0
        self._all = 0
        self._waiting: deque[Deferred[None]] = deque()
        self._admitting = False

    async def ask(self, question: Callable[[], Deferred[T]]) -> T:
        """The answer to a question that is asked when there is room for it; first come, first served."""
        if not self._has_room:
            turn: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(turn)
            await turn
        else:
            self._enter()
        slow = self._reactor.callLater(SLOW_S, self._make_room)
        try:
            return await question()
        finally:
            self._all -= 1
            if slow.active():
                slow.cancel()
                self._make_room()
            else:
                self._admit()

    @property
    def _has_room(self) -> bool:
        return self._brisk < BRISK and self._all < MOST

    def _enter(self) -> None:
        self._brisk += 1
        self._all += 1

    def _make_room(self) -> None:
        """One question is not brisk any more."""
        self._brisk -= 1
        self._admit()

    def _admit(self) -> None:
        if self._admitting:
            return  # a question that was over at once
        self._admitting = True
        while self._waiting and self._has_room:
            self._enter()
            self._waiting.popleft().callback(None)
        self._admitting = False


def _content(reply: Reply, read: Callable[[bytes], T]) -> T:
    """What an answer says.

    Raises:
        LeaseNotFoundError: the leader does not know the lease.
        ValueError: it says nothing of leases.
    """
    if reply.status == 404 and reply.body.strip() == NOT_FOUND:  # and not any path that is not found
        raise LeaseNotFoundError
    if reply.status != 200:
        raise ValueError(f"status {reply.status} {reply.body[:200].decode('latin-1').strip()}")
    try:
        return read(reply.body)
    except DecodeError as error:
        raise ValueError("not a message about a lease") from error


def _renewed(body: bytes, lease_id: int) -> int:
    response = LeaseKeepAliveResponse.FromString(body)
    if lease_id != response.ID:
        raise ValueError("an answer about another lease")
    return response.TTL


def _described(body: bytes, lease_id: int) -> LeaseTimeToLiveResponse:
    response = LeaseInternalResponse.FromString(body).LeaseTimeToLiveResponse
    if lease_id != response.ID:
        raise ValueError("an answer about another lease")
    response.ClearField("header")  # the leader's is empty; the member that the client asked has its own
    return response
