"""The Election service: whose key under ``name/`` is the oldest leads, and the key's value is what it proclaims.

Source: etcd ``server/etcdserver/api/v3election/election.go`` and ``client/v3/concurrency/election.go``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from twisted.internet.defer import CancelledError

from twistedkv.errors import Code, KVError, RPCError
from twistedkv.pb import v3election_pb2
from twistedkv.pb.rpc_pb2 import DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse
from twistedkv.pb.v3election_pb2 import (
    CampaignRequest,
    CampaignResponse,
    LeaderKey,
    LeaderRequest,
    LeaderResponse,
    ProclaimRequest,
    ProclaimResponse,
    ResignRequest,
    ResignResponse,
)
from twistedkv.protocols.rpc import Access, Call, Method, service_methods
from twistedkv.protocols.services.inside import Inside, Session, created_at, first_created, run
from twistedkv.watchers import prefix_end
from twistedkv.wire import HeaderEncoder, prefixed

_KV = b"\x12"  # LeaderResponse.kv, as a tag


class ElectionMember(Protocol):
    """What this service needs of the member; see :class:`twistedkv.server.Member`."""

    header: HeaderEncoder

    @property
    def term(self) -> int: ...


class ElectionService:
    """Campaign, Proclaim, Leader, Observe and Resign.

    Args:
        inside: carries the steps out.
        member: makes the headers of what is observed.
    """

    def __init__(self, inside: Inside, member: ElectionMember) -> None:
        self._inside = inside
        self._member = member

    def methods(self) -> list[Method]:
        """The methods of this service, for the method table."""
        return service_methods(
            v3election_pb2.DESCRIPTOR.services_by_name["Election"],
            {
                "Campaign": (Access.KEYS, self.campaign),
                "Proclaim": (Access.KEYS, self.proclaim),
                "Leader": (Access.KEYS, self.leader),
                "Observe": (Access.KEYS, self.observe),
                "Resign": (Access.KEYS, self.resign),
            },
        )

    def campaign(self, call: Call) -> None:
        """Election.Campaign: answered once elected."""
        run(call, _campaign(Session(self._inside, call), CampaignRequest.FromString(call.message)))

    def proclaim(self, call: Call) -> None:
        """Election.Proclaim: a new value, without a new election."""
        request = ProclaimRequest.FromString(call.message)
        _check_leader_key(request)
        run(call, _proclaim(Session(self._inside, call), request))

    def leader(self, call: Call) -> None:
        """Election.Leader: who leads now."""
        run(call, _leader(Session(self._inside, call), LeaderRequest.FromString(call.message)))

    def observe(self, call: Call) -> None:
        """Election.Observe: who leads now, and each later proclamation of whoever leads then."""
        request = LeaderRequest.FromString(call.message)
        run(call, self._observe(Session(self._inside, call), call, request.name + b"/"))

    def resign(self, call: Call) -> None:
        """Election.Resign: a key that leads no more is no error."""
        request = ResignRequest.FromString(call.message)
        _check_leader_key(request)
        run(call, _resign(Session(self._inside, call), request))

    async def _observe(self, session: Session, call: Call, prefix: bytes) -> bytes:
        while True:
            found = await session.range(first_created(prefix))
            revision = found.header.revision
            if found.kvs:
                key, pair = found.kvs[0].key, found.kvs[0].SerializeToString()
            else:
                put = None
                while put is None:
                    revision, changes = await session.next_changes(prefix, prefix_end(prefix), revision + 1)
                    if not changes:
                        break
                    put = next((change for change in changes if not change.deleted), None)
                if put is None:
                    continue
                key, pair = put.key, put.pair
            call.send(self._leader_response(revision, pair))
            await self._follow(session, call, key, revision)

    async def _follow(self, session: Session, call: Call, key: bytes, revision: int) -> None:
        """Send what is put to ``key`` after ``revision``, until it is deleted."""
        while True:
            await session.until_writable()
            revision, changes = await session.next_changes(key, b"", revision + 1)
            if not changes or changes[0].deleted:
                return
            call.send(self._leader_response(revision, changes[0].pair))

    def _leader_response(self, revision: int, pair: bytes) -> bytes:
        return self._member.header.field(revision, self._member.term) + prefixed(_KV, pair)


async def _campaign(session: Session, request: CampaignRequest) -> bytes:
    lease = await session.lease(request.lease)
    prefix = request.name + b"/"
    key = prefix + b"%x" % lease
    entered = await session.txn(
        TxnRequest(
            compare=[created_at(key, 0)],
            success=[RequestOp(request_put=PutRequest(key=key, value=request.value, lease=lease))],
            failure=[RequestOp(request_range=RangeRequest(key=key))],
        )
    )
    leader = LeaderKey(name=request.name, key=key, rev=entered.header.revision, lease=lease)
    if not entered.succeeded:  # this session stands already
        pair = entered.responses[0].response_range.kvs[0]
        leader.rev = pair.create_revision
        if pair.value != request.value:
            try:
                await _if_standing(session, leader, [_put(leader, request.value)])
            except (KVError, CancelledError):
                session.abandon(_if_standing(session, leader, [_delete(leader)]))
                raise
    # Unlike a lock, etcd does not look whether the own key is still there in the end.
    try:
        await session.until_first(prefix, leader.rev)
    except CancelledError:
        session.abandon(_if_standing(session, leader, [_delete(leader)]))
        raise
    return CampaignResponse(header=entered.header, leader=leader).SerializeToString()


async def _proclaim(session: Session, request: ProclaimRequest) -> bytes:
    leader = request.leader
    leader.lease = await session.lease(leader.lease)
    response = await _if_standing(session, leader, [_put(leader, request.value)])
    return ProclaimResponse(header=response.header).SerializeToString()


async def _leader(session: Session, request: LeaderRequest) -> bytes:
    found = await session.range(first_created(request.name + b"/"))
    if not found.kvs:
        raise RPCError(Code.UNKNOWN, "election: no leader")
    return LeaderResponse(header=found.header, kv=found.kvs[0]).SerializeToString()


async def _resign(session: Session, request: ResignRequest) -> bytes:
    leader = request.leader
    await session.lease(leader.lease)  # etcd makes one here, too, which nobody will use
    response = await session.txn(TxnRequest(compare=[created_at(leader.key, leader.rev)], success=[_delete(leader)]))
    return ResignResponse(header=response.header).SerializeToString()


async def _if_standing(session: Session, leader: LeaderKey, operations: Sequence[RequestOp]) -> TxnResponse:
    """Do something with a key that is still the one that stood for election.

    Raises:
        RPCError: it is not.
    """
    response = await session.txn(TxnRequest(compare=[created_at(leader.key, leader.rev)], success=operations))
    if not response.succeeded:
        raise RPCError(Code.UNKNOWN, "election: not leader")
    return response


def _put(leader: LeaderKey, value: bytes) -> RequestOp:
    return RequestOp(request_put=PutRequest(key=leader.key, value=value, lease=leader.lease))


def _delete(leader: LeaderKey) -> RequestOp:
    return RequestOp(request_delete_range=DeleteRangeRequest(key=leader.key))


def _check_leader_key(request: ProclaimRequest | ResignRequest) -> None:
    if not request.HasField("leader"):
        raise RPCError(Code.UNKNOWN, '"leader" field must be provided')
