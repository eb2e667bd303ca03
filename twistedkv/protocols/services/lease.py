"""The Lease service: granting and revoking through the log, renewing and asking on the leader.

Source: etcd ``server/etcdserver/api/v3rpc/lease.go`` and ``server/etcdserver/v3_server.go``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from twistedkv.errors import KVError, LeaseNotFoundError
from twistedkv.lease import Lessor
from twistedkv.leaseclock import LeaseClock
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
from twistedkv.storage.mvcc import Store
from twistedkv.wire import HeaderEncoder, prefixed

_GRANT, _REVOKE = b"\x42", b"\x4a"  # fields of InternalRaftRequest, as tags
_GRANT_COST = 64  # etcd server/etcdserver/quota.go, leaseOverhead


class LeaseMember(Protocol):
    """What this service needs of the member; see :class:`twistedkv.server.Member`."""

    header: HeaderEncoder
    store: Store
    leases: LeaseClock

    @property
    def lessor(self) -> Lessor: ...

    @property
    def term(self) -> int: ...

    def when_readable(self, ready: Callable[[], None], fail: Callable[[KVError], None]) -> None: ...

    def propose(self, body: bytes, waiter: Call) -> None: ...

    def new_id(self) -> int: ...

    def check_quota(self, cost: int) -> None: ...


class LeaseService:
    """LeaseGrant, LeaseRevoke, LeaseKeepAlive, LeaseTimeToLive and LeaseLeases."""

    def __init__(self, member: LeaseMember) -> None:
        self._member = member

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
        _KeepAlive(self._member, call)

    def time_to_live(self, call: Call) -> None:
        """Lease.LeaseTimeToLive: a lease that does not exist is no error."""
        request = LeaseTimeToLiveRequest.FromString(call.message)
        when_leading(self._member, lambda: self._time_to_live(call, request), call.fail)

    def _time_to_live(self, call: Call, request: LeaseTimeToLiveRequest) -> None:
        member = self._member
        response = LeaseTimeToLiveResponse(ID=request.ID, TTL=-1)
        if request.ID in member.lessor:
            lease = member.lessor.get(request.ID)
            response.TTL = int(member.leases.remaining_s(lease.id))  # towards zero, as Go converts
            response.grantedTTL = lease.ttl_s
            if request.keys:
                response.keys.extend(lease.keys)
        call.reply(_header(member) + response.SerializeToString())

    def leases(self, call: Call) -> None:
        """Lease.LeaseLeases: all of them, the first to end first."""
        response = LeaseLeasesResponse(leases=[LeaseStatus(ID=each) for each in self._member.leases.by_end()])
        call.reply(_header(self._member) + response.SerializeToString())


class _KeepAlive:
    """One stream of renewals.

    A request that cannot be answered yet, because its lease has ended and its revocation is on the way, holds up those
    behind it: the client counts on responses in the order of its requests.
    """

    def __init__(self, member: LeaseMember, call: Call) -> None:
        self._member = member
        self._call = call
        self._held: deque[int] = deque()  # leases to renew, of which the first one is being waited for
        self._half_closed = False
        call.on_message = self._received
        call.on_half_close = self._half_close
        call.on_writable = self._go_on

    def _received(self, message: bytes) -> None:
        held = self._held
        held.append(LeaseKeepAliveRequest.FromString(message).ID)
        if len(held) == 1:
            self._answer()

    def _half_close(self) -> None:
        self._half_closed = True
        if not self._held:
            self._call.finish()

    def _go_on(self) -> None:
        if not self._held:
            self._call.resume()

    def _answer(self) -> None:
        """Answer what is held, until something has to be waited for."""
        member, call, held = self._member, self._call, self._held
        while held and not call.done:
            lease_id = held[0]
            header = _header(member)  # from before the renewal: who sees a newer revision knows it is not covered
            if not self._renew(lease_id, header):
                call.pause()
                return
            held.popleft()
        if call.done:
            return
        if self._half_closed:
            call.finish()
        elif not call.writable:
            call.pause()

    def _renew(self, lease_id: int, header: bytes) -> bool:
        """Answer one request; False if that has to wait."""
        member = self._member
        ttl_s: int | None = 0
        if not member.leases.leading:
            member.when_readable(lambda: self._retry(lease_id, header), self._call.fail)
            return False
        try:
            ttl_s = member.leases.renew(lease_id)
        except LeaseNotFoundError:
            ttl_s = 0
        if ttl_s is None:
            member.leases.when_over(lease_id, lambda: self._retry(lease_id, header))
            return False
        self._call.send(header + LeaseKeepAliveResponse(ID=lease_id, TTL=ttl_s).SerializeToString())
        return True

    def _retry(self, lease_id: int, header: bytes) -> None:
        if not self._call.done and self._renew(lease_id, header):
            self._held.popleft()
            self._answer()
            if not self._held and not self._call.done and self._call.writable:
                self._call.resume()


def when_leading(member: LeaseMember, ready: Callable[[], None], fail: Callable[[KVError], None]) -> None:
    """Call ``ready`` once the time of leases is counted here, else ``fail``."""
    if member.leases.leading:
        ready()
    else:
        member.when_readable(ready, fail)


def _header(member: LeaseMember) -> bytes:
    return member.header.field(member.store.revision, member.term)
