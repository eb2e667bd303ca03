"""A snapshot that another member has sent, read into batches for the database. Pure: it looks at bytes.

What arrives is a message with the point of the log that the snapshot stands for and the v2 store's text
(:mod:`twistedkv.v2text`), members among it, and a bbolt file. Text and buckets become ours. Whoever wrote them, etcd
from 3.4 on or twistedkv, what is taken over was looked at: pages inside of the file, keys that ascend, messages that
parse, a tree that can be, and that message, text and database are of one moment. bbolt has no checksums of its pages,
so damage inside of a value passes; see :func:`twistedkv.snapshot.crc32c_of` for what twistedkv adds.

The members are those of the message. What is known of each comes from the text first, by which etcd 3.5 itself goes:
the ``members`` bucket of 3.5.1 lacks client URLs, and that of some releases keeps learners that were promoted, or
members that were removed. Source: etcd ``server/storage/schema``, ``server/etcdserver/api/membership``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from struct import Struct
from typing import Final, TypeVar

from google.protobuf.message import DecodeError

from twistedkv.apply import CLUSTER_VERSION, DOWNGRADE, META_APPLIED_INDEX, META_APPLIED_TERM, META_INSTALLED
from twistedkv.downgrade import Downgrade
from twistedkv.members import MemberInfo, Membership
from twistedkv.pb.auth_pb2 import Role, User
from twistedkv.pb.kv_pb2 import KeyValue
from twistedkv.pb.lease_pb2 import Lease
from twistedkv.pb.rpc_pb2 import AlarmMember
from twistedkv.raft.messages import ConfState, SnapshotMeta
from twistedkv.storage.backend import MAX_MAIN, SUB_MASK, Batch, Bucket, RevisionRow, main_of, pack
from twistedkv.storage.bbolt import BoltError, BoltReader, Bytes
from twistedkv.storage.mvcc import META_COMPACTED, META_COMPACTION_DONE, META_REVISION
from twistedkv.v2records import META_DIRECTORY_INDEX, records_of, store_of
from twistedkv.v2text import decode

T = TypeVar("T")

BATCH_ROWS: Final = 2_048  # a multiple of what goes into one statement
BATCH_BYTES: Final = 4 << 20  # of keys and values, whichever comes first

_KEYS: Final = "key"
_META: Final = "meta"
_RECORDS: Final = {
    "alarm": Bucket.ALARMS,
    "auth": Bucket.AUTH,
    "authRoles": Bucket.AUTH_ROLES,
    "authUsers": Bucket.AUTH_USERS,
    "cluster": Bucket.CLUSTER,
    "lease": Bucket.LEASES,
}
_MEMBERS: Final = "members"
_REMOVED: Final = "members_removed"

_REVISION: Final = Struct(">QcQ")  # main, "_", sub
_NUMBER: Final = Struct(">Q")
_ROW_BYTES: Final = 100  # about what a row takes in memory beside key and value

_SHOWN: Final = 200  # bytes of what was found, in an error

Record = tuple[Bucket, bytes, bytes]


class SnapshotDamagedError(Exception):
    """A snapshot cannot take the place of the state; the text is one line that names what is wrong with it."""


class SnapshotReader:
    """One snapshot; what can be known without reading all of it is examined at once.

    The database has to be of exactly the message's index. A smaller one lacks entries that nobody would send any more.
    A larger one has applied entries that are still to come by the log: they would be carried out twice. (etcd, which
    passes over entries up to its database's index, would take it; nobody is known to send it.)

    Args:
        data: the database's file.
        meta: of the message.
        v2_text: the message's data; may be empty, which etcd never sends.

    Raises:
        SnapshotDamagedError: it is of no use.
    """

    def __init__(self, data: Bytes, meta: SnapshotMeta, v2_text: bytes) -> None:
        self._meta = meta
        try:
            self._bolt = BoltReader(data)
        except BoltError as error:
            raise SnapshotDamagedError(f"the database is damaged: {error}") from error
        names = {name.decode("latin-1") for name in self._bolt.buckets}
        missing = sorted({_KEYS, _META, _MEMBERS, _REMOVED, *_RECORDS} - names)
        if missing:
            raise SnapshotDamagedError(f"the database has no bucket {missing[0]}")
        self._marks = self._check_marks()
        self._cluster_version = ""  # as the database says
        if v2_text:
            try:
                facts, self._directory, self._history = decode(v2_text)
            except ValueError as error:
                raise SnapshotDamagedError(f"the message's v2 store cannot be read: {error}") from error
            self.membership = self._merge(facts.membership)
            self._cluster_version = facts.cluster_version
        else:
            self.membership = self._merge(Membership())
            self._directory, hub = store_of({}, {}, None, self.membership, "")
            self._history = hub.history

    def examine(self) -> None:
        """Read all of it.

        Raises:
            SnapshotDamagedError: it is of no use.
        """
        for _ in self.batches({}):
            pass

    def batches(self, marks: Mapping[bytes, bytes]) -> Iterator[Batch]:
        """Everything that belongs into a database, for :meth:`~twistedkv.storage.backend.Backend.replace`.

        Args:
            marks: further records of ``Bucket.META``.

        Raises:
            SnapshotDamagedError: it is of no use; raised at any point.
        """
        batch, size = Batch(), 0
        for bucket, key, value in self._records():
            batch.records[bucket, key] = value
            size += len(key) + len(value) + _ROW_BYTES
            if len(batch.records) >= BATCH_ROWS or size >= BATCH_BYTES:
                yield batch
                batch, size = Batch(), 0
        last = 0
        for row in self._rows():
            batch.rows.append(row)
            last = row.revision
            size += len(row.key) + len(row.value) + _ROW_BYTES
            if len(batch.rows) >= BATCH_ROWS or size >= BATCH_BYTES:
                yield batch
                batch, size = Batch(), 0
        for name, text in {**self._our_marks(last), **marks}.items():
            batch.records[Bucket.META, name] = text
        yield batch

    # --- the log's side ------------------------------------------------------------------------------

    def _check_marks(self) -> dict[str, bytes]:
        """The ``meta`` bucket, which agrees with the message."""
        marks = {key.decode("latin-1"): value for key, value in self._items(_META)}
        index, term = self._meta.index, self._meta.term
        found = _number(_META, "consistent_index", marks.get("consistent_index", b""))
        if found != index:
            where = "behind" if found < index else "ahead of"
            raise SnapshotDamagedError(f"the database is at index {found}, {where} the message's {index}")
        if "term" in marks and (found := _number(_META, "term", marks["term"])) != term:  # none before etcd 3.5
            raise SnapshotDamagedError(f"the database is of term {found} and the message of term {term}")
        return marks

    def _our_marks(self, last: int) -> dict[bytes, bytes]:
        """What our ``META`` says of a state whose last row is at packed revision ``last``."""
        done, begun = (_compaction(name, self._marks) for name in ("finishedCompactRev", "scheduledCompactRev"))
        compacted = max(done, begun)
        # etcd mvcc/kvstore.go, restore: of the last revisions all rows may be compacted away
        revision = max(main_of(last), compacted, 1)
        marks = {
            META_DIRECTORY_INDEX: self._directory.index,
            META_REVISION: revision,
            META_APPLIED_INDEX: self._meta.index,
            META_APPLIED_TERM: self._meta.term,
            META_INSTALLED: self._meta.index,
        }
        if compacted >= 0:
            marks[META_COMPACTED] = compacted
        if done >= 0:
            marks[META_COMPACTION_DONE] = done
        return {name: b"%d" % value for name, value in marks.items()}

    # --- members -------------------------------------------------------------------------------------

    def _merge(self, told: Membership) -> Membership:
        """The members that count by the message, with all that text and database know of them."""
        state = self._meta.conf_state
        stored: dict[int, MemberInfo] = {}
        for key, value in self._items(_MEMBERS):
            described = _parsed(_MEMBERS, key, MemberInfo.from_json, value)
            if b"%x" % described.id != key:
                raise _damaged(_MEMBERS, key, f"describes member {described.id:x}")
            stored[described.id] = described
        removed = {_parsed(_REMOVED, key, _id, key) for key, _ in self._items(_REMOVED)}
        members = {}
        for member_id in (*state.voters, *state.learners):
            also = stored.get(member_id)
            member = told.members.get(member_id, also)
            if member is None or not member.peer_urls:
                raise SnapshotDamagedError(f"nothing is known of member {member_id:x}, which counts by the message")
            if also is not None:
                name, client_urls = member.name or also.name, member.client_urls or also.client_urls
                member = replace(member, name=name, client_urls=client_urls)
            members[member_id] = member
        for member_id in sorted(told.members.keys() - members.keys()):
            raise SnapshotDamagedError(f"member {member_id:x} does not count by the message")
        merged = Membership(members, removed | told.removed)
        wanted = ConfState(tuple(sorted(state.voters)), tuple(sorted(state.learners)))
        if merged.conf_state() != wanted or state.voters_outgoing or state.learners_next or not state.voters:
            raise SnapshotDamagedError(f"the members are not those of the message: {state}")
        if both := sorted(merged.removed & members.keys()):
            raise SnapshotDamagedError(f"member {both[0]:x} is a member and removed")
        return merged

    # --- records -------------------------------------------------------------------------------------

    def _records(self) -> Iterator[Record]:
        """All records but those of ``META``."""
        version = self._cluster_version
        for name, bucket in _RECORDS.items():
            for key, value in self._items(name):
                match bucket:
                    case Bucket.ALARMS:
                        alarm = _parsed(name, key, AlarmMember.FromString, key)
                        yield bucket, alarm.SerializeToString(deterministic=True), b""
                        continue
                    case Bucket.LEASES:
                        lease = _parsed(name, key, Lease.FromString, value)
                        if not lease.ID or lease.ID.to_bytes(8, "big", signed=True) != key:
                            raise _damaged(name, key, f"holds lease {lease.ID:x}")
                    case Bucket.AUTH_USERS:
                        if _parsed(name, key, User.FromString, value).name != key:
                            raise _damaged(name, key, "holds another user")
                    case Bucket.AUTH_ROLES:
                        if _parsed(name, key, Role.FromString, value).name != key:
                            raise _damaged(name, key, "holds another role")
                    case Bucket.AUTH:
                        if len(value) != {b"authEnabled": 1, b"authRevision": 8}.get(key, len(value)):
                            raise _damaged(name, key, f"has {len(value)} bytes")
                    case Bucket.CLUSTER if key == CLUSTER_VERSION:
                        version = version or _parsed(name, key, _text, value)
                        continue
                    case Bucket.CLUSTER if key == DOWNGRADE:
                        _parsed(name, key, Downgrade.from_json, value)
                yield bucket, key, value
        if version:
            yield Bucket.CLUSTER, CLUSTER_VERSION, version.encode()
        for member in self.membership.listed():
            yield Bucket.MEMBERS, b"%x" % member.id, member.to_json()
        for member_id in sorted(self.membership.removed):
            yield Bucket.MEMBERS_REMOVED, b"%x" % member_id, b"removed"
        yield from records_of(self._directory, self._history)

    def _rows(self) -> Iterator[RevisionRow]:
        """All revisions, ascending."""
        before = 0
        for key, value in self._items(_KEYS):
            size = len(key)
            tombstone = size == _REVISION.size + 1 and key[-1:] == b"t"
            if size != _REVISION.size and not tombstone:
                raise _damaged(_KEYS, key, "is no revision")
            main, mark, sub = _REVISION.unpack_from(key)
            if mark != b"_" or not 0 < main <= MAX_MAIN or sub > SUB_MASK:
                raise _damaged(_KEYS, key, f"is no revision that can be: {main}, {sub}")
            revision = pack(main, sub)
            if revision <= before:  # possible with keys that ascend: a tombstone's is longer
                raise _damaged(_KEYS, key, "is there twice")
            before = revision
            pair = _parsed(_KEYS, key, KeyValue.FromString, value)
            if not pair.key:
                raise _damaged(_KEYS, key, "names no key")
            if tombstone:
                yield RevisionRow(revision, pair.key, 0, 0, 0, b"", True)
                continue
            if pair.mod_revision != main or not 0 < pair.create_revision <= main or pair.version < 1:
                raise _damaged(_KEYS, key, "contradicts itself")
            yield RevisionRow(revision, pair.key, pair.create_revision, pair.version, pair.lease, pair.value, False)

    def _items(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        """The pairs of a bucket, their keys ascending."""
        before: bytes | None = None
        try:
            for key, value in self._bolt.items(name.encode()):
                if before is not None and key <= before:
                    raise _damaged(name, key, f"does not come after {before.hex()}")
                before = key
                yield key, value
        except BoltError as error:
            raise SnapshotDamagedError(f"bucket {name} is damaged: {error}") from error


def _parsed(bucket: str, key: bytes, parse: Callable[[bytes], T], value: bytes) -> T:
    try:
        return parse(value)
    except (DecodeError, ValueError, RecursionError) as error:
        raise _damaged(bucket, key, f"cannot be read: {str(error)[:_SHOWN]}") from error


def _damaged(bucket: str, key: bytes, what: str) -> SnapshotDamagedError:
    return SnapshotDamagedError(f"bucket {bucket}: {key[:_SHOWN].hex()} {what}")


def _number(bucket: str, key: str, value: bytes) -> int:
    if len(value) != _NUMBER.size:
        raise SnapshotDamagedError(f"bucket {bucket}: {key} has {len(value)} bytes")
    return int(_NUMBER.unpack(value)[0])


def _compaction(key: str, marks: Mapping[str, bytes]) -> int:
    """The main revision of a compaction; -1 if there was none."""
    value = marks.get(key)
    if value is None:
        return -1
    if len(value) != _REVISION.size or (main := int(_REVISION.unpack(value)[0])) > MAX_MAIN:
        raise SnapshotDamagedError(f"bucket {_META}: {key} is no revision")
    return main


def _id(text: bytes) -> int:
    found = int(text, 16)
    if text != b"%x" % found or not 0 < found < 1 << 64:
        raise ValueError("no member's id")
    return found


def _text(value: bytes) -> str:
    return value.decode()
