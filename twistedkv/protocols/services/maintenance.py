"""The Maintenance service: alarms, status, hashes, defragmentation, snapshots, downgrade.

Source: etcd ``server/etcdserver/api/v3rpc/maintenance.go``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import google_crc32c
from twisted.internet.defer import Deferred

from twistedkv.apply import Alarms, Applier
from twistedkv.corruption import Hash, hash_at
from twistedkv.errors import (
    BadLeaderTransfereeError,
    Code,
    KVError,
    NoDowngradeError,
    NoLeaderError,
    NotLeaderError,
    RPCError,
)
from twistedkv.handover import MovingMember, transfer
from twistedkv.members import Membership
from twistedkv.pb import rpc_pb2
from twistedkv.pb.membership_pb2 import DowngradeInfoSetRequest
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.rpc_pb2 import (
    AlarmRequest,
    AlarmType,
    DowngradeRequest,
    DowngradeResponse,
    HashKVRequest,
    HashKVResponse,
    HashResponse,
    MoveLeaderRequest,
    StatusResponse,
)
from twistedkv.protocols.rpc import Access, Call, Method, service_methods
from twistedkv.protocols.services.answers import answer_when
from twistedkv.protocols.services.snapshot import SnapshotMember, answer_snapshot
from twistedkv.storage.backend import MAX_MAIN, Backend, Bucket, Size, pack
from twistedkv.storage.mvcc import Store, encode_row
from twistedkv.wire import HeaderEncoder

# It depends on the member how the last events of the v2 API are divided into records; etcd's Hash leaves its keys out.
_NOT_HASHED = (Bucket.META, Bucket.DIRECTORY, Bucket.DIRECTORY_EVENTS)


class MaintenanceMember(SnapshotMember, MovingMember, Protocol):
    """What this service needs of the member; see :class:`twistedkv.server.Member`."""

    applier: Applier
    header: HeaderEncoder
    member_id: int
    store: Store
    timeout_s: float

    @property
    def term(self) -> int: ...

    @property
    def is_leader(self) -> bool: ...

    @property
    def is_learner(self) -> bool: ...

    @property
    def membership(self) -> Membership: ...

    @property
    def committed(self) -> int: ...

    @property
    def applied(self) -> int: ...

    @property
    def alarms(self) -> Alarms: ...

    def when_readable(self, ready: Callable[[], None], fail: Callable[[KVError], None]) -> None: ...

    def propose_request(self, request: InternalRaftRequest) -> Deferred[bytes]: ...


def alarm_text(member_id: int, kind: int) -> str:
    """An alarm as Go prints the protobuf message, trailing space included: clients and people look for it."""
    return f"memberID:{member_id} alarm:{AlarmType.Name(kind)} "


class MaintenanceService:
    """All methods of the service.

    Args:
        member: who answers.
        version: the server version to report.
    """

    def __init__(self, member: MaintenanceMember, version: str) -> None:
        self._member = member
        self._version = version

    def methods(self) -> list[Method]:
        """The methods of this service, for the method table."""
        return service_methods(
            rpc_pb2.DESCRIPTOR.services_by_name["Maintenance"],
            {
                "Alarm": (Access.ADMIN, self.alarm),
                "Status": (Access.IDENTITY, self.status),
                "Defragment": (Access.ADMIN, self.defragment),
                "Hash": (Access.ADMIN, self.hash),
                "HashKV": (Access.ADMIN, self.hash_kv),
                "Snapshot": (Access.ADMIN, self.snapshot),
                "MoveLeader": (Access.ADMIN, self.move_leader),
                "Downgrade": (Access.ADMIN, self.downgrade),
            },
        )

    def alarm(self, call: Call) -> None:
        """Maintenance.Alarm: through the log, also to list them, so that the answer is the cluster's."""
        request = AlarmRequest.FromString(call.message)
        if request.action not in AlarmRequest.AlarmAction.values():
            raise RPCError(Code.INVALID_ARGUMENT, "etcdserver: unknown alarm action")  # etcd 3.5.1 crashes on it
        answer_when(self._member.propose_request(InternalRaftRequest(alarm=request)), call, call.reply)

    def status(self, call: Call) -> None:
        """Maintenance.Status: of this member, as it is now."""

        def answer(size: Size) -> None:
            member = self._member
            response = StatusResponse(
                version=self._version,
                dbSize=size.total,
                leader=member.leader,
                raftIndex=member.committed,
                raftTerm=member.term,
                raftAppliedIndex=member.applied,
                dbSizeInUse=size.in_use,
                isLearner=member.is_learner,
            )
            if not member.leader:
                response.errors.append(NoLeaderError.text)
            response.errors.extend(alarm_text(each.memberID, each.alarm) for each in member.alarms.listed())
            call.reply(self._header() + response.SerializeToString())

        # What is not written yet does not count: a database whose disk is full would have everybody wait.
        answer_when(self._member.on_storage_thread(lambda backend: backend.size()), call, answer)

    def hash_kv(self, call: Call) -> None:
        """Maintenance.HashKV: of all keys as of a revision, without what compaction dropped."""
        request = HashKVRequest.FromString(call.message)

        def answer(found: Hash) -> None:
            response = HashKVResponse(hash=found.hash, compact_revision=found.compact_revision)
            call.reply(self._header() + response.SerializeToString())

        answer_when(Deferred.fromCoroutine(hash_at(self._member, request.revision)), call, answer)

    def hash(self, call: Call) -> None:
        """Maintenance.Hash: of everything in this member's database; comparable between equal versions only."""

        began_s = self._member.reactor.seconds()

        def answer(value: int) -> None:
            self._member.metrics.hash.observe(self._member.reactor.seconds() - began_s)
            call.reply(self._header() + HashResponse(hash=value).SerializeToString())

        self._on_backend(call, answer, _hash_everything)

    def defragment(self, call: Call) -> None:
        """Maintenance.Defragment: gives unused space back, bit by bit, between which writes go to the database."""
        answer_when(Deferred.fromCoroutine(self._defragment(call)), call, call.reply)

    async def _defragment(self, call: Call) -> bytes:
        member, metrics = self._member, self._member.metrics
        began_s = member.reactor.seconds()
        metrics.defragmenting += 1
        try:
            while not (call.done or await member.read_backend(lambda backend: backend.defragment())):
                pass
        finally:
            metrics.defragmenting -= 1
        metrics.backend_defrag.observe(member.reactor.seconds() - began_s)
        return b""

    def snapshot(self, call: Call) -> None:
        """Maintenance.Snapshot: a copy of the state, as a database file of etcd's."""
        answer_when(Deferred.fromCoroutine(answer_snapshot(self._member, call)), call, lambda _: call.finish())

    def move_leader(self, call: Call) -> None:
        """Maintenance.MoveLeader: asked of the leader only; answered once another one leads, or fails to in time.

        etcd waits as long as the client does. Here it is as long as for any request, since Raft tries no longer.
        """
        member = self._member
        if not member.is_leader:
            raise NotLeaderError
        target = member.membership.members.get(MoveLeaderRequest.FromString(call.message).targetID)
        if target is None or target.is_learner:
            raise BadLeaderTransfereeError
        if target.id == member.member_id:
            call.reply(b"")
            return
        moved = transfer(member, target.id, member.timeout_s)
        call.on_cancel = moved.cancel
        answer_when(moved, call, lambda _: call.reply(b""))

    def downgrade(self, call: Call) -> None:
        """Maintenance.Downgrade: asks, or has it recorded.

        etcd 3.5.1 records as well, but then never answers; here it is answered as in later releases.
        """
        request = DowngradeRequest.FromString(call.message)
        if request.action not in DowngradeRequest.DowngradeAction.values():
            raise RPCError(Code.UNKNOWN, "etcdserver: unknown method")
        self._member.when_readable(lambda: self._downgrade(call, request), call.fail)

    def _downgrade(self, call: Call, request: DowngradeRequest) -> None:
        applier = self._member.applier
        try:
            if request.action == DowngradeRequest.CANCEL:
                if not applier.downgrade.enabled:
                    raise NoDowngradeError
                change = DowngradeInfoSetRequest(enabled=False)
            else:
                target = applier.downgrade.check_start(request.version, applier.cluster_version)
                change = DowngradeInfoSetRequest(enabled=True, ver=target)
        except KVError as error:
            call.fail(error)
            return

        def answer(_: bytes) -> None:
            call.reply(self._header() + DowngradeResponse(version=applier.cluster_version).SerializeToString())

        if request.action == DowngradeRequest.VALIDATE:
            answer(b"")
        else:
            answer_when(self._member.propose_request(InternalRaftRequest(downgrade_info_set=change)), call, answer)

    def _header(self) -> bytes:
        return self._member.header.field(self._member.store.revision, self._member.term)

    def _on_backend(
        self, call: Call, answer: Callable[[Any], None], function: Callable[..., Any], *arguments: Any
    ) -> None:
        answer_when(self._member.read_backend(function, *arguments), call, answer)


def _hash_everything(backend: Backend) -> int:
    """CRC-32C over every row and record, except what changes with each entry of the log, and the keys of the v2 API."""
    crc = 0
    for bucket in Bucket:
        if bucket not in _NOT_HASHED:
            for key, value in sorted(backend.records(bucket).items()):
                crc = google_crc32c.extend(crc, bucket.value.encode() + key + value)
    first = 0
    while rows := backend.scan(first, pack(MAX_MAIN), 1_000):
        crc = google_crc32c.extend(crc, b"".join(row.revision.to_bytes(8, "big") + encode_row(row) for row in rows))
        first = rows[-1].revision + 1
    return int(crc)
