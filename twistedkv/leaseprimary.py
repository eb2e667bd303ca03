"""The primary lessor, as etcd calls the one of the leader: renewing a lease, and saying how long it has left.

Three things come first, and mostly they are there already. The leader is certain that it still leads; see
:mod:`twistedkv.leaseclock`. Its state has what was committed when it was asked, or it would renew a lease whose
revocation was answered already. And a lease that has ended must be revoked before its owner is told that it is gone.

Source: etcd ``server/lease/lessor.go`` (Renew, Lookup), ``server/etcdserver/v3_server.go`` (LeaseRenew).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred

from twistedkv.errors import KVError, LeaderChangedError
from twistedkv.lease import Lessor
from twistedkv.leaseclock import LeaseClock
from twistedkv.pb.rpc_pb2 import LeaseTimeToLiveResponse


class NotPrimaryError(Exception):
    """This member does not count the time of leases."""

    def __str__(self) -> str:
        return "not a primary lessor"  # etcd's words, lessor.go: other members see them


class PrimaryMember(Protocol):
    """What is needed of the member; see :class:`twistedkv.server.Member`."""

    leases: LeaseClock

    @property
    def lessor(self) -> Lessor: ...

    @property
    def term(self) -> int: ...

    @property
    def committed(self) -> int: ...

    @property
    def applied(self) -> int: ...

    def when_readable(self, ready: Callable[[], None], fail: Callable[[KVError], None]) -> None: ...

    def when_applied(self, index: int, reached: Callable[[], None]) -> None: ...


class PrimaryLessor:
    """Answers for leases while this member leads."""

    def __init__(self, member: PrimaryMember) -> None:
        self._member = member
        self._asking = False  # a quorum, whether this member leads
        self._waiting: dict[Deferred[None], bool] = {}  # for any of this; in the order in which they came
        member.leases.changes.append(self._look_again)

    def renew_at_once(self, lease_id: int) -> int | None:
        """The TTL, if the lease can be renewed now; None if :meth:`renew` must wait for something.

        Raises:
            LeaseNotFoundError: there is no such lease.
        """
        return self._member.leases.renew(lease_id) if self._is_up_to_date(self._member.committed) else None

    async def renew(self, lease_id: int) -> int:
        """Give a lease all of its time again; the TTL.

        Raises:
            LeaseNotFoundError: there is no such lease, or none any more.
            NotPrimaryError: this member does not lead, or leads no more.
            KVError: the quorum does not answer.
        """
        leases = self._member.leases
        while True:
            await self.up_to_date()
            ttl_s = leases.renew(lease_id)
            if ttl_s is not None:
                return ttl_s
            await until(lambda over: leases.when_over(lease_id, over))

    async def time_to_live(self, lease_id: int, keys: bool) -> LeaseTimeToLiveResponse:
        """What is left of a lease, without a header.

        Args:
            keys: whether the answer names the keys that hang on it.

        Raises:
            LeaseNotFoundError, NotPrimaryError, KVError: as :meth:`renew`.
        """
        await self.up_to_date()
        lease = self._member.lessor.get(lease_id)
        response = LeaseTimeToLiveResponse(ID=lease_id, grantedTTL=lease.ttl_s)
        response.TTL = int(self._member.leases.remaining_s(lease_id))  # towards zero, as Go converts
        if keys:
            response.keys.extend(lease.keys)
        return response

    async def up_to_date(self) -> None:
        """Returns once this member is certain that it leads, and has applied all that is committed by now.

        Raises:
            NotPrimaryError: it does not lead, or leads no more.
            KVError: the quorum does not answer.
        """
        member = self._member
        index = member.committed
        while not self._is_up_to_date(index):
            if not member.leases.leading:
                raise NotPrimaryError
            if not member.leases.is_certain:
                await self._quorum_or_change()
            else:
                await self._applied_or_change(index)

    def _is_up_to_date(self, index: int) -> bool:
        member, leases = self._member, self._member.leases
        if not leases.leading or member.applied < index:
            return False
        if leases.wants_confirmation:
            self._ask_quorum()  # a sole voter knows at once
        return leases.is_certain

    # --- waiting -------------------------------------------------------------------------------------

    def _ask_quorum(self) -> None:
        """Begin to find out whether this member leads now, unless that is under way."""
        if self._asking:
            return
        self._asking = True
        member = self._member
        asked_s, term = member.leases.now_s(), member.term

        def confirmed() -> None:
            self._asking = False
            if member.term == term:  # else it was another leader who answered
                member.leases.confirm(asked_s)
            self._look_again()

        def refused(error: KVError) -> None:
            self._asking = False
            if isinstance(error, LeaderChangedError):
                self._look_again()
            else:
                self._tell(lambda waiting: waiting.errback(error))

        member.when_readable(confirmed, refused)

    def _quorum_or_change(self) -> Deferred[None]:
        """Fires when the quorum has answered, or leading has ended; fails if the quorum does not answer."""
        waiting = self._change()
        self._ask_quorum()
        return waiting

    def _applied_or_change(self, index: int) -> Deferred[None]:
        """Fires when the log is applied up to ``index``, or leading has ended."""
        waiting = self._change()

        def reached() -> None:
            if self._waiting.pop(waiting, False) and not waiting.called:
                waiting.callback(None)

        self._member.when_applied(index, reached)
        return waiting

    def _change(self) -> Deferred[None]:
        def give_up(waiting: Deferred[None]) -> None:
            self._waiting.pop(waiting, None)

        waiting: Deferred[None] = Deferred(give_up)
        self._waiting[waiting] = True
        return waiting

    def _look_again(self) -> None:
        self._tell(lambda waiting: waiting.callback(None))

    def _tell(self, how: Callable[[Deferred[None]], None]) -> None:
        waiting, self._waiting = self._waiting, {}
        for each in waiting:
            if not each.called:
                how(each)


def until(begin: Callable[[Callable[[], None]], Callable[[], None]]) -> Deferred[None]:
    """A Deferred in place of a callback.

    Args:
        begin: is given what is to be called once, and returns what takes that back.
    """
    fired: Deferred[None] = Deferred(lambda _: cancel())

    def fire() -> None:
        if not fired.called:
            fired.callback(None)

    cancel = begin(fire)
    return fired
