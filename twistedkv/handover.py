"""Leadership from one member to another: on an operator's word, and before the leader stops.

Raft gives a transfer up after one election timeout and says so to nobody, so whoever asked for it watches who leads.

Source: etcd ``server/etcdserver/server.go``, MoveLeader and TransferLeadership.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twistedkv.errors import KVError, LeaderTransferTimeoutError, NotLeaderError
from twistedkv.members import Membership
from twistedkv.peering import Transport
from twistedkv.raft.messages import ProposalDropped

_log = Logger()


class MovingMember(Protocol):
    """What it takes to move leadership; see :class:`twistedkv.server.Member`."""

    leader_changes: list[Callable[[], None]]  # called after each change of leader or role

    @property
    def reactor(self) -> IReactorTime: ...

    @property
    def leader(self) -> int: ...

    def transfer_leader(self, target: int) -> None: ...


class LeadingMember(MovingMember, Protocol):
    """What it takes to choose who shall lead next."""

    member_id: int

    @property
    def peers(self) -> Transport: ...

    @property
    def is_leader(self) -> bool: ...

    @property
    def membership(self) -> Membership: ...


def transfer(member: MovingMember, target: int, limit_s: float) -> Deferred[None]:
    """Have ``target`` lead. Fires once this member knows it for the leader; cancelling ends the waiting only.

    Fails with NotLeaderError if nobody leads any more, and with LeaderTransferTimeoutError after ``limit_s``.
    """

    def end(_: object = None) -> None:
        if timer.active():
            timer.cancel()
        if look in member.leader_changes:
            member.leader_changes.remove(look)

    def look() -> None:
        if member.leader == target:
            end()
            moved.callback(None)

    def late() -> None:
        end()
        moved.errback(LeaderTransferTimeoutError())

    moved: Deferred[None] = Deferred(end)
    member.leader_changes.append(look)
    timer = member.reactor.callLater(limit_s, late)
    try:
        member.transfer_leader(target)
    except ProposalDropped:
        end()
        return fail(NotLeaderError())
    look()
    return moved


async def hand_over(member: LeadingMember, limit_s: float) -> None:
    """If this member leads others, have another voter lead before this one stops. Does not raise.

    Args:
        limit_s: how long it may take; the member stops then all the same, and the others elect a leader.
    """
    me = member.member_id
    others = [each.id for each in member.membership.voters() if each.id != me]
    if not member.is_leader or not others:
        return
    target = longest_connected(member.peers, others)
    if target is None:
        _log.warn("no other voter is connected: leadership cannot be handed over")
        return
    _log.info("handing leadership over to {target:x}", target=target)
    try:
        await transfer(member, target, limit_s)
    except KVError as error:
        _log.warn("leadership was not handed over to {target:x}: {error}", target=target, error=error)
    except Exception:  # the member is about to stop, whatever it is
        _log.failure("leadership was not handed over to {target:x}", target=target)


def longest_connected(peers: Transport, members: list[int]) -> int | None:
    """The member that has been heard of for the longest time without a break; None if none is heard of."""
    since = [(since_s, each) for each in members if (since_s := peers.active_since(each)) is not None]
    return min(since)[1] if since else None
