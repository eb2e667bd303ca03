"""The Lease service: granting and revoking through the log, renewing and asking at the leader.

Source: etcd ``server/etcdserver/api/v3rpc/lease.go`` and ``server/etcdserver/v3_server.go``.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from twistedkv.errors import InvariantError, LeaseNotFoundError
from twistedkv.leaseforward import ForwardMember, LeaseForward
from twistedkv.leaseprimary import PrimaryLessor
from twistedkv.pb import rpc_pb2
from twistedkv.pb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseLeasesResponse,
    LeaseRevokeRequest,
    LeaseStatus,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
)
from twistedkv.protocols.rpc import Access, Call, Method, service_methods
from twistedkv.protocols.services.answers import answer_when
from twistedkv.storage.mvcc import Store
from twistedkv.wire import HeaderEncoder, prefixed

_GRANT, _REVOKE = b"\x42", b"\x4a"  # fields of InternalRaftRequest, as tags
_GRANT_COST = 64  # etcd server/etcdserver/quota.go, leaseOverhead


class LeaseMember(ForwardMember, Protocol):
    """What this service needs of the member; see :class:`twistedkv.server.Member`."""

    header: HeaderEncoder
    store: Store

    def propose(self, body: bytes, waiter: Call) -> None: ...

    def new_id(self) -> int: ...

    def check_quota(self, cost: int) -> None: ...


class LeaseService:
    """LeaseGrant, LeaseRevoke, LeaseKeepAlive, LeaseTimeToLive and LeaseLeases."""

    def __init__(self, member: LeaseMember) -> None:
        self._member = member
        self._forward = LeaseForward(member, PrimaryLessor(member))

    def methods(self) -> list[Method]:
        """The methods of this service, for the method table."""
        return service_methods(
            rpc_pb2.DESCRIPTOR.services_by_name["Lease"],
            {
                "LeaseGrant": (Access.IDENTITY, self.grant),
                "LeaseRevoke": (Access.KEYS, self.revoke),
                "LeaseKeepAlive": (Access.KEYS, self.keep_alive),
                "LeaseTimeToLive": (Access.KEYS, self.time_to_live),
                "LeaseLeases": (Access.IDENTITY, self.leases),
            },
        )

    def grant(self, call: Call) -> None:
        """Lease.LeaseGrant: a lease without an id gets one here, so that all members apply the same."""
        request = LeaseGrantRequest.FromString(call.message)
        member = self._member
        member.check_quota(_GRANT_COST)
        if not request.ID:
            request.ID = member.new_id()
        member.propose(prefixed(_GRANT, request.SerializeToString()), call)

    def revoke(self, call: Call) -> None:
        """Lease.LeaseRevoke."""
        LeaseRevokeRequest.FromString(call.message)
        self._member.propose(prefixed(_REVOKE, call.message), call)

    def keep_alive(self, call: Call) -> None:
        """Lease.LeaseKeepAlive: one response for each request, in their order."""
        _KeepAlive(self._member, self._forward, call)

    def time_to_live(self, call: Call) -> None:
        """Lease.LeaseTimeToLive: a lease that does not exist is no error."""
        request = LeaseTimeToLiveRequest.FromString(call.message)

        def gone(failure: Failure) -> LeaseTimeToLiveResponse:
            failure.trap(LeaseNotFoundError)
            return LeaseTimeToLiveResponse(ID=request.ID, TTL=-1)

        answered = self._forward.time_to_live(request.ID, request.keys).addErrback(gone)
        call.on_cancel = answered.cancel
        answer_when(answered, call, lambda response: call.reply(_header(self._member) + response.SerializeToString()))

    def leases(self, call: Call) -> None:
        """Lease.LeaseLeases: all that this member knows of; on the leader the first to end comes first."""
        response = LeaseLeasesResponse(leases=[LeaseStatus(ID=each) for each in self._member.leases.by_end()])
        call.reply(_header(self._member) + response.SerializeToString())


class _KeepAlive:
    """One stream of renewals.

    A request that cannot be answered yet, because the leader has to be asked, or because its lease has ended and its
    revocation is on the way, holds up those behind it: the client counts on responses in the order of its requests,
    and a renewal that was made long before it is answered would promise too much.
    """

    def __init__(self, member: LeaseMember, forward: LeaseForward, call: Call) -> None:
        self._member = member
        self._forward = forward
        self._call = call
        self._held: deque[int] = deque()  # leases to renew
        self._header = b""  # of the next response
        self._renewal: Deferred[int] | None = None  # of the first of them, if it has to be waited for
        self._answering = False
        self._half_closed = False
        call.on_message = self._received
        call.on_half_close = self._half_close
        call.on_writable = self._go_on
        call.on_cancel = self._cancelled

    def _received(self, message: bytes) -> None:
        self._held.append(LeaseKeepAliveRequest.FromString(message).ID)
        self._answer()

    def _half_close(self) -> None:
        self._half_closed = True
        if not self._held:
            self._call.finish()

    def _go_on(self) -> None:
        if not self._held:
            self._call.resume()

    def _cancelled(self) -> None:
        self._held.clear()
        if self._renewal is not None:
            self._renewal.cancel()

    def _answer(self) -> None:
        """Answer what is held, until something has to be waited for."""
        if self._answering:
            return
        self._answering = True
        call, held = self._call, self._held
        while held and self._renewal is None and not call.done:
            # From before the renewal: who sees a newer revision knows that it is not covered.
            self._header = _header(self._member)
            self._renew(held[0])
        self._answering = False
        if call.done:
            return
        if held:
            call.pause()
        elif self._half_closed:
            call.finish()
        elif not call.writable:
            call.pause()

    def _renew(self, lease_id: int) -> None:
        """Answer one request, or begin to wait for what it takes."""
        try:
            ttl_s = self._forward.renew_at_once(lease_id)
        except LeaseNotFoundError:
            ttl_s = 0
        if ttl_s is not None:
            self._send(ttl_s)
            return
        renewal = self._renewal = self._forward.renew(lease_id)
        renewal.addErrback(_gone).addCallbacks(self._renewed, self._failed)

    def _renewed(self, ttl_s: int) -> None:
        self._renewal = None
        self._send(ttl_s)
        if not self._answering:
            self._answer()
            call = self._call
            if not self._held and not call.done and call.writable:
                call.resume()

    def _send(self, ttl_s: int) -> None:
        if not self._call.done:
            lease_id = self._held.popleft()
            self._call.send(self._header + LeaseKeepAliveResponse(ID=lease_id, TTL=ttl_s).SerializeToString())

    def _failed(self, failure: Failure) -> None:
        self._renewal = None
        if not failure.check(CancelledError):
            self._call.fail(failure.value or InvariantError("a failure without an exception"))


def _gone(failure: Failure) -> int:
    failure.trap(LeaseNotFoundError)
    return 0


def _header(member: LeaseMember) -> bytes:
    return member.header.field(member.store.revision, member.term)
