"""One committed entry in, a change of state and a result out. Nothing else writes the replicated state.

Applying depends on the state and on the entry alone, never on a clock, on dice or on what only this member knows: equal
logs give equal state. Source: etcd ``server/etcdserver/apply.go`` and ``server.go``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, Self

from twistedkv.clusternodes import attributes_set, member_added, member_removed, member_updated, version_set
from twistedkv.downgrade import Downgrade
from twistedkv.errors import Code, CorruptError, NoSpaceError, RPCError
from twistedkv.lease import Lessor, encode_record, record_key
from twistedkv.members import Membership
from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.raft_pb2 import ConfChange
from twistedkv.pb.rpc_pb2 import (
    CORRUPT,
    NONE,
    NOSPACE,
    AlarmMember,
    AlarmRequest,
    AlarmResponse,
    AlarmType,
    LeaseCheckpointRequest,
    LeaseGrantRequest,
    LeaseGrantResponse,
)
from twistedkv.storage.backend import Bucket
from twistedkv.storage.directory import Directory
from twistedkv.storage.mvcc import Need, Store
from twistedkv.txn import Done, Executor, txn_cost
from twistedkv.v2events import Event
from twistedkv.v2request import PlainSet
from twistedkv.v2store import V2Store
from twistedkv.v2watch import V2Hub

META_APPLIED_INDEX = b"applied_index"  # decimal, in Bucket.META; written with what that index brought
META_APPLIED_TERM = b"applied_term"
META_INSTALLED = b"installed_snapshot"  # decimal; the index of the last snapshot that took the place of everything
CLUSTER_VERSION = b"clusterVersion"  # key in Bucket.CLUSTER; the value is "3.5.0"
DOWNGRADE = b"downgrade"  # beside it; the value is Downgrade.to_json()

# etcd server/etcdserver/apply.go: applierV3Corrupt and applierV3Capped
_REFUSED_WHEN_CORRUPT = ("put", "delete_range", "txn", "compaction", "lease_grant", "lease_revoke")


class Alarms:
    """Which members raised which alarms."""

    def __init__(self, records: Mapping[bytes, bytes] | None = None) -> None:
        self._raised: dict[tuple[int, int], AlarmMember] = {}
        for encoded in records or ():
            alarm = AlarmMember.FromString(encoded)
            self._raised[alarm.memberID, alarm.alarm] = alarm

    def __bool__(self) -> bool:
        return bool(self._raised)

    def restore(self, other: Alarms) -> None:
        """Have the alarms of ``other``, which is not used any more."""
        self._raised = other._raised

    def listed(self, kind: int = NONE) -> list[AlarmMember]:
        """The raised alarms of one kind, or of all for NONE, by kind and member."""
        return [
            self._raised[key]
            for key in sorted(self._raised, key=lambda each: (each[1], each[0]))
            if kind in (NONE, key[1])
        ]

    def raised(self, kind: int) -> bool:
        """Whether any member raised this kind."""
        return any(each == kind for _, each in self._raised)

    def activate(self, member: int, kind: AlarmType) -> AlarmMember:
        """Raise an alarm, which may be raised already."""
        return self._raised.setdefault((member, kind), AlarmMember(memberID=member, alarm=kind))

    def deactivate(self, member: int, kind: int) -> AlarmMember | None:
        """Take an alarm back; None if it was not raised."""
        return self._raised.pop((member, kind), None)


class LoadedState(Protocol):
    """A whole state; see :class:`twistedkv.restore.Loaded`."""

    @property
    def store(self) -> Store: ...

    @property
    def lessor(self) -> Lessor: ...

    @property
    def alarms(self) -> Alarms: ...

    @property
    def membership(self) -> Membership: ...

    @property
    def cluster_version(self) -> str: ...

    @property
    def downgrade(self) -> Downgrade: ...

    @property
    def directory(self) -> Directory: ...

    @property
    def v2hub(self) -> V2Hub: ...


class Applier:
    """The replicated state and the only writer of it.

    Args:
        store: keys and values.
        lessor: leases.
        alarms: alarms.
        membership: members.
        cluster_version: as last recorded; empty while it is not decided.
        downgrade: as last recorded.
        v2: keys of the v2 API; empty if none is given.
    """

    def __init__(
        self,
        store: Store,
        lessor: Lessor,
        alarms: Alarms,
        membership: Membership,
        cluster_version: str = "",
        downgrade: Downgrade = Downgrade(),  # noqa: B008 - a frozen value
        v2: V2Store | None = None,
    ) -> None:
        self.store = store
        self.lessor = lessor
        self.alarms = alarms
        self.membership = membership
        self.cluster_version = cluster_version
        self.downgrade = downgrade
        self.v2 = v2 or V2Store()
        self.executor = Executor(store, lessor)

    @classmethod
    def of(cls, state: LoadedState) -> Self:
        """The writer of ``state``, whose parts nobody else uses."""
        v2 = V2Store(state.directory, state.v2hub)
        return cls(
            state.store, state.lessor, state.alarms, state.membership, state.cluster_version, state.downgrade, v2
        )

    def needs(self, request: InternalRaftRequest) -> Iterator[Need]:
        """What must be fetched and lent to the store before :meth:`apply` can take ``request``."""
        if request.HasField("put"):
            return self.executor.needs_put(request.put)
        if request.HasField("txn"):
            return self.executor.needs_txn(request.txn)
        if request.HasField("delete_range"):
            return self.executor.needs_delete(request.delete_range)
        return iter(())

    def apply(self, request: InternalRaftRequest) -> Done:
        """Carry out one request.

        Raises:
            KVError: it was refused, and nothing was changed.
        """
        executor = self.executor
        if self.alarms:
            self._check_alarms(request)
        if request.HasField("put"):
            return executor.put(request.put)
        if request.HasField("txn"):
            return executor.txn(request.txn)
        if request.HasField("delete_range"):
            return executor.delete(request.delete_range)
        if request.HasField("lease_grant"):
            return Done(self.store.revision, self._grant(request.lease_grant).SerializeToString())
        if request.HasField("lease_revoke"):
            return self._revoke(request.lease_revoke.ID)
        if request.HasField("lease_checkpoint"):
            self._checkpoint(request.lease_checkpoint)
            return Done(self.store.revision, b"")
        if request.HasField("compaction"):
            self.store.compact(request.compaction.revision)
            return Done(self.store.revision, b"")
        if request.HasField("alarm"):
            return Done(self.store.revision, self._alarm(request.alarm).SerializeToString())
        if request.HasField("cluster_member_attr_set"):
            attributes = request.cluster_member_attr_set
            member = self.membership.set_attributes(
                attributes.member_ID, attributes.member_attributes.name, attributes.member_attributes.client_urls
            )
            if member is not None:
                self.store.record(Bucket.MEMBERS, b"%x" % member.id, member.to_json())
                attributes_set(self.v2.directory, member)
            return Done(self.store.revision, b"")
        if request.HasField("cluster_version_set"):
            self.cluster_version = request.cluster_version_set.ver
            self.store.record(Bucket.CLUSTER, CLUSTER_VERSION, self.cluster_version.encode())
            version_set(self.v2.directory, self.cluster_version)
            return Done(self.store.revision, b"")
        if request.HasField("downgrade_info_set"):
            change = request.downgrade_info_set
            self.downgrade = Downgrade(change.ver, True) if change.enabled else Downgrade()
            self.store.record(Bucket.CLUSTER, DOWNGRADE, self.downgrade.to_json())
            return Done(self.store.revision, b"")
        raise RPCError(Code.UNIMPLEMENTED, "etcdserver: the log holds a request that this version does not know")

    def apply_v2(self, request: Request | PlainSet) -> Event | None:
        """Carry out one request for keys of the v2 API; what happened, None for the passing of time.

        Raises:
            V2Error: it was refused, and nothing was changed.
        """
        return self.v2.apply(request)

    def apply_conf_change(self, change: ConfChange) -> None:
        """Carry out one change of membership.

        Raises:
            KVError, ValueError: it does not fit the members; nothing was changed.
        """
        self.membership.check(change)
        is_new = change.node_id not in self.membership.members
        member = self.membership.apply(change)
        key = b"%x" % change.node_id
        if member is None:
            self.store.record(Bucket.MEMBERS, key, None)
            self.store.record(Bucket.MEMBERS_REMOVED, key, b"removed")
            member_removed(self.v2.directory, change.node_id)
            return
        self.store.record(Bucket.MEMBERS, key, member.to_json())
        if is_new:
            member_added(self.v2.directory, member)
        else:
            member_updated(self.v2.directory, member)

    def restore(self, state: LoadedState) -> None:
        """Take over ``state``, a later one of the same history, whose parts nobody else uses.

        Store, lessor, alarms, membership, executor and v2 stay the objects that they are; what is in them changes.

        Raises:
            InvariantError: it is an earlier state; nothing was changed.
        """
        self.store.restore(state.store)
        self.lessor.restore(state.lessor)
        self.alarms.restore(state.alarms)
        self.membership.restore(state.membership)
        self.cluster_version = state.cluster_version
        self.downgrade = state.downgrade
        self.v2.restore(state.directory, state.v2hub.history)

    def _check_alarms(self, request: InternalRaftRequest) -> None:
        if self.alarms.raised(CORRUPT) and any(request.HasField(name) for name in _REFUSED_WHEN_CORRUPT):
            raise CorruptError
        if self.alarms.raised(NOSPACE) and (
            request.HasField("put")
            or request.HasField("lease_grant")
            or (request.HasField("txn") and txn_cost(request.txn))
        ):
            raise NoSpaceError

    def _grant(self, request: LeaseGrantRequest) -> LeaseGrantResponse:
        lease = self.lessor.grant(request.ID, request.TTL)
        self.store.record(Bucket.LEASES, record_key(lease.id), encode_record(lease))
        return LeaseGrantResponse(ID=lease.id, TTL=lease.ttl_s)

    def _revoke(self, lease_id: int) -> Done:
        keys = sorted(self.lessor.get(lease_id).keys)  # sorted, so that all members number the changes alike
        revision = self.executor.delete_keys(keys)
        self.lessor.revoke(lease_id)
        self.store.record(Bucket.LEASES, record_key(lease_id), None)
        return Done(revision, b"")

    def _checkpoint(self, request: LeaseCheckpointRequest) -> None:
        for checkpoint in request.checkpoints:
            lease = self.lessor.checkpoint(checkpoint.ID, checkpoint.remaining_TTL)
            if lease is not None:
                self.store.record(Bucket.LEASES, record_key(lease.id), encode_record(lease))

    def _alarm(self, request: AlarmRequest) -> AlarmResponse:
        response = AlarmResponse()
        match request.action:
            case AlarmRequest.GET:
                response.alarms.extend(self.alarms.listed(request.alarm))
            case AlarmRequest.ACTIVATE:
                if request.alarm not in AlarmType.values():
                    raise RPCError(Code.INVALID_ARGUMENT, "etcdserver: unknown alarm type")  # etcd 3.5.1 crashes on it
                if request.alarm != NONE:
                    alarm = self.alarms.activate(request.memberID, request.alarm)
                    self.store.record(Bucket.ALARMS, alarm.SerializeToString(deterministic=True), b"")
                    response.alarms.append(alarm)
            case AlarmRequest.DEACTIVATE:
                taken = self.alarms.deactivate(request.memberID, request.alarm)
                if taken is not None:
                    self.store.record(Bucket.ALARMS, taken.SerializeToString(deterministic=True), None)
                    response.alarms.append(taken)
            case _:
                raise RPCError(Code.INVALID_ARGUMENT, "etcdserver: unknown alarm action")
        return response
