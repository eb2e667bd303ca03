"""Reading another member's snapshot: what of it becomes ours, and what is refused before it does any harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.storage.test_bbolt import written
from tests.v2trees import START_NS, change_tree, content, text_of, told
from twistedkv import snapshotreader
from twistedkv.apply import META_APPLIED_INDEX, META_APPLIED_TERM, META_INSTALLED
from twistedkv.configload import load_config
from twistedkv.members import MemberInfo, Membership
from twistedkv.pb.auth_pb2 import Role, User
from twistedkv.pb.kv_pb2 import KeyValue
from twistedkv.pb.lease_pb2 import Lease
from twistedkv.pb.rpc_pb2 import NOSPACE, AlarmMember
from twistedkv.raft.messages import ConfState, SnapshotMeta
from twistedkv.restore import Loaded, load_state
from twistedkv.snapshotreader import SnapshotDamagedError, SnapshotReader
from twistedkv.storage.backend import MAX_MAIN, SUB_MASK, Batch, Bucket, pack
from twistedkv.storage.bbolt import PAGE_BYTES
from twistedkv.storage.contract import EVERYTHING, put, tombstone
from twistedkv.storage.directory import Directory
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.mvcc import META_COMPACTED, META_COMPACTION_DONE, META_REVISION, encode_row
from twistedkv.v2records import META_DIRECTORY_INDEX
from twistedkv.v2text import decode, encode
from twistedkv.v2watch import History

A = MemberInfo(0xA1, ("http://192.0.2.1:2380",), "m1", ("http://192.0.2.1:2379",))
B = MemberInfo(0xB2, ("http://192.0.2.2:2380",), "m2", ("http://192.0.2.2:2379",))
NEW = MemberInfo(0xC3, ("http://192.0.2.3:2380",), is_learner=True)
MEMBERSHIP = Membership({each.id: each for each in (A, B, NEW)}, [7])
META = SnapshotMeta(42, 3, ConfState((A.id, B.id), (NEW.id,)))

Buckets = dict[bytes, dict[bytes, bytes]]


def number(value: int) -> bytes:
    """8 bytes, big-endian."""
    return value.to_bytes(8, "big")


def revision(main: int, sub: int = 0, mark: bytes = b"") -> bytes:
    """A key of the ``key`` bucket."""
    return number(main) + b"_" + number(sub) + mark


def stored(member: MemberInfo) -> bytes:
    """A member as the database of etcd 3.5.1 has it: without client URLs."""
    fields = json.loads(member.to_json())
    fields.pop("clientURLs", None)
    return json.dumps(fields).encode()


ROWS = [
    put(2, b"a", b"1", lease=0x77),
    put(2, b"b", b"", sub=1),
    put(5, b"a", b"2", version=2)._replace(create_revision=2),
    tombstone(6, b"b"),
    put(7, b"\xff\x00", bytes(5_000)),
]


def buckets() -> Buckets:
    """What etcd has in its database."""
    alarm = AlarmMember(memberID=A.id, alarm=NOSPACE).SerializeToString()
    return {
        b"alarm": {alarm: b""},
        b"auth": {b"authEnabled": b"\x01", b"authRevision": number(4)},
        b"authRoles": {b"root": Role(name=b"root").SerializeToString()},
        b"authUsers": {b"root": User(name=b"root", password=b"x", roles=["root"]).SerializeToString()},
        b"cluster": {b"clusterVersion": b"3.5.0", b"downgrade": b'{"target-version":"3.4.0","enabled":true}'},
        b"key": {
            revision(row.revision >> 22, row.revision & SUB_MASK, b"t" * row.tombstone): encode_row(row) for row in ROWS
        },
        b"lease": {
            number(0x77): Lease(ID=0x77, TTL=60, RemainingTTL=20).SerializeToString(),
            number(2**64 - 5): Lease(ID=-5, TTL=90).SerializeToString(),
        },
        b"members": {b"%x" % each.id: stored(each) for each in (A, B, NEW)},
        b"members_removed": {b"7": b"removed"},
        b"meta": {
            b"confState": b'{"voters":[161,178],"learners":[195],"auto_leave":false}',
            b"consistent_index": number(42),
            b"finishedCompactRev": revision(3),
            b"scheduledCompactRev": revision(4),
            b"term": number(3),
        },
    }


def reader(contents: Buckets, meta: SnapshotMeta = META, text: bytes | None = None) -> SnapshotReader:
    """A reader of a file with these buckets."""
    data = written(dict(sorted(contents.items())))
    return SnapshotReader(data, meta, text_of(MEMBERSHIP, "3.5.0") if text is None else text)


def installed(source: SnapshotReader) -> MemoryBackend:
    """A database that was replaced by a snapshot."""
    backend = MemoryBackend()
    backend.write(Batch([put(1, b"old")], {(bucket, b"old"): b"old" for bucket in Bucket}))
    backend.replace(source.batches({b"mark": b"ours"}))
    return backend


class ContentTests(SynchronousTestCase):
    """What becomes of it."""

    def test_every_bucket(self) -> None:
        """Rows and records are in our buckets, the log's place and the compaction among our marks."""
        backend = installed(reader(buckets()))
        self.assertEqual(backend.scan(0, EVERYTHING, 100), ROWS)
        alarm = AlarmMember(memberID=A.id, alarm=NOSPACE).SerializeToString()
        for bucket, records in {
            Bucket.ALARMS: {alarm: b""},
            Bucket.AUTH: buckets()[b"auth"],
            Bucket.AUTH_USERS: buckets()[b"authUsers"],
            Bucket.AUTH_ROLES: buckets()[b"authRoles"],
            Bucket.CLUSTER: buckets()[b"cluster"],
            Bucket.LEASES: buckets()[b"lease"],
            Bucket.MEMBERS: {b"a1": A.to_json(), b"b2": B.to_json(), b"c3": NEW.to_json()},
            Bucket.MEMBERS_REMOVED: {b"7": b"removed"},
            Bucket.META: {
                META_REVISION: b"7",
                META_COMPACTED: b"4",
                META_COMPACTION_DONE: b"3",
                META_APPLIED_INDEX: b"42",
                META_APPLIED_TERM: b"3",
                META_DIRECTORY_INDEX: b"7",
                META_INSTALLED: b"42",
                b"mark": b"ours",
            },
        }.items():
            self.assertEqual(backend.records(bucket), records, bucket)

    def test_the_state_that_is_loaded(self) -> None:
        """The member that starts from it has keys, leases with their keys, alarms, members and version."""
        loaded = load_state(installed(reader(buckets())), load_config({"data-dir": "d"}, {}))
        store = loaded.store
        self.assertEqual((store.revision, store.compacted, sorted(store.index.entries)), (7, 4, [b"a", b"\xff\x00"]))
        self.assertEqual(
            [(each.id, each.ttl_s, each.remaining_ttl_s) for each in loaded.lessor], [(119, 60, 20), (-5, 90, 0)]
        )
        self.assertEqual(loaded.lessor.keys(0x77), frozenset())  # a was put again without it
        self.assertTrue(loaded.alarms.raised(NOSPACE))
        self.assertEqual(loaded.membership.members, MEMBERSHIP.members)
        self.assertEqual((loaded.cluster_version, loaded.downgrade.target), ("3.5.0", "3.4.0"))
        self.assertEqual((loaded.described, loaded.installed, loaded.compaction_done), (META, 42, 3))

    def test_never_compacted_and_empty(self) -> None:
        """A cluster without a key, an alarm, a lease or a compaction has none of them afterwards."""
        contents: Buckets = {name: {} for name in buckets()} | {b"meta": {b"consistent_index": number(42)}}
        source = reader(contents)
        loaded = load_state(installed(source), load_config({"data-dir": "d"}, {}))
        self.assertEqual((loaded.store.revision, loaded.store.compacted, loaded.compaction_done), (1, -1, -1))
        self.assertEqual(loaded.membership.members, MEMBERSHIP.members)

    def test_all_of_the_last_revisions_may_be_compacted_away(self) -> None:
        """The revision is that of the compaction if no row is as new (etcd kvstore.go, restore)."""
        contents = buckets()
        contents[b"key"] = {key: value for key, value in contents[b"key"].items() if key < revision(5)}
        contents[b"meta"][b"finishedCompactRev"] = contents[b"meta"][b"scheduledCompactRev"] = revision(9)
        loaded = load_state(installed(reader(contents)), load_config({"data-dir": "d"}, {}))
        self.assertEqual((loaded.store.revision, loaded.store.compacted, loaded.compaction_done), (9, 9, 9))

    def test_etcd_3_4(self) -> None:
        """Before 3.5 there is no term in the database, nor a downgrade."""
        contents = buckets()
        del contents[b"meta"][b"term"], contents[b"meta"][b"confState"], contents[b"cluster"][b"downgrade"]
        reader(contents).examine()

    def test_what_is_not_known(self) -> None:
        """Further buckets and marks of later versions are passed over."""
        contents = buckets() | {b"test": {b"a": b"b"}, b"\xff": {}}
        contents[b"meta"][b"storageVersion"] = b"3.6.0"
        reader(contents).examine()

    def test_batches_are_bounded(self) -> None:
        """No batch has more rows, records or bytes than a bound, but for the one that breaks it."""
        contents = buckets()
        contents[b"key"] = {revision(n): encode_row(put(n, b"k%d" % n, bytes(n % 700))) for n in range(2, 3_000)}
        contents[b"lease"] = {number(n): Lease(ID=n, TTL=60).SerializeToString() for n in range(1, 500)}
        for rows, most_bytes in ((64, 1 << 20), (2_000, 20_000)):
            self.patch(snapshotreader, "BATCH_ROWS", rows)
            self.patch(snapshotreader, "BATCH_BYTES", most_bytes)
            batches = list(reader(contents).batches({}))
            self.assertEqual(sum(len(batch.rows) for batch in batches), 2_998)
            for batch in batches:
                self.assertLessEqual(len(batch.rows), rows)
                self.assertLessEqual(len(batch.records), rows + 20)  # our marks are among them
                self.assertLessEqual(sum(len(row.key) + len(row.value) for row in batch.rows), most_bytes + 1_000)


class V2StoreTests(SynchronousTestCase):
    """What becomes of the v2 store in the text."""

    def loaded(self, source: SnapshotReader) -> Loaded:
        """The state of a database that was replaced by a snapshot."""
        return load_state(installed(source), load_config({"data-dir": "d"}, {}))

    def test_a_store_with_keys(self) -> None:
        """Tree, history and index are in the database afterwards, bytes that are no text and ends among them."""
        tree, history = store_with_keys()
        state = self.loaded(reader(buckets(), text=encode(tree, history)))
        self.assertEqual(content(state.directory), content(tree))
        self.assertEqual(told(state.v2hub.history), told(history))
        self.assertEqual((state.directory.index, state.directory.changed), (tree.index, set()))
        self.assertEqual(state.directory.first_end_ns, tree.first_end_ns)

    def test_what_is_larger_than_a_batch(self) -> None:
        """No batch grows beyond its bound by nodes and events either."""
        tree, history = store_with_keys()
        for number in range(1_500):
            tree.set(f"/1/{number}", False, "v" * 100)
        self.patch(snapshotreader, "BATCH_BYTES", 20_000)
        source = reader(buckets(), text=encode(tree, history))
        batches = list(source.batches({}))
        self.assertGreater(len(batches), 15)
        for batch in batches:
            nodes = [value for (bucket, _), value in batch.records.items() if bucket is Bucket.DIRECTORY and value]
            self.assertLessEqual(sum(map(len, nodes)), 21_000)
        self.assertEqual(content(self.loaded(source).directory), content(tree))

    def test_a_message_without_a_text(self) -> None:
        """The store is that of a cluster of the members that the database knows."""
        state = self.loaded(reader(buckets(), text=b""))
        self.assertEqual(state.directory.index, 6)
        self.assertEqual(state.membership.members.keys(), MEMBERSHIP.members.keys())
        self.assertIsNotNone(state.directory.node("/0/members/a1/attributes"))

    def test_damage(self) -> None:
        """A tree that cannot be is refused before it does any harm."""
        tree, history = store_with_keys()
        text = encode(tree, history).replace(b'"ExpireTime":"2', b'"ExpireTime":"x', 1)
        error = self.assertRaises(SnapshotDamagedError, reader, buckets(), text=text)
        self.assertIn("the message's v2 store cannot be read: 'x", str(error))


def store_with_keys() -> tuple[Directory, History]:
    """The cluster's store with whatever users have in it, something that ends among it."""
    _, tree, history = decode(text_of(MEMBERSHIP, "3.5.0"))
    dice = Random(11)
    for _ in range(300):
        change_tree(tree, dice)
    tree.set("/1/ends", False, "\udcff", START_NS)
    return tree, history


class MemberTests(SynchronousTestCase):
    """Text, database and message do not know the same of the members."""

    def merged(self, contents: Buckets, told: Membership | None) -> dict[int, MemberInfo]:
        """The members that come out."""
        text = b"" if told is None else text_of(told, "")
        return reader(contents, text=text).membership.members

    def test_the_text_has_more(self) -> None:
        """Client URLs, which the database of 3.5.1 lacks, come from the text."""
        self.assertEqual(self.merged(buckets(), MEMBERSHIP), MEMBERSHIP.members)

    def test_the_database_has_more(self) -> None:
        """What the text lacks, all of it at worst, comes from the database."""
        contents = buckets()
        contents[b"members"] = {b"%x" % each.id: each.to_json() for each in (A, B, NEW)}
        bare = Membership({each: MemberInfo(each, ("http://192.0.2.9:1",)) for each in (A.id, B.id)})
        found = self.merged(contents, bare)
        self.assertEqual(found[A.id], MemberInfo(A.id, ("http://192.0.2.9:1",), A.name, A.client_urls))
        self.assertEqual(found[NEW.id], NEW)
        self.assertEqual(self.merged(contents, None), MEMBERSHIP.members)

    def test_the_text_is_right(self) -> None:
        """A learner that was promoted, and a member that was removed, as the database of 3.5 may still have them."""
        contents = buckets()
        contents[b"members"][b"b2"] = MemberInfo(B.id, B.peer_urls, is_learner=True).to_json()
        contents[b"members"][b"7"] = MemberInfo(7, ("http://192.0.2.7:2380",)).to_json()
        self.assertEqual(self.merged(contents, MEMBERSHIP), MEMBERSHIP.members)

    def test_who_was_removed(self) -> None:
        """Whoever either of them knows to be removed is."""
        told = Membership(MEMBERSHIP.members, [8])
        self.assertEqual(reader(buckets(), text=text_of(told, "")).membership.removed, {7, 8})

    def test_the_version(self) -> None:
        """It comes from the text, or else from the database."""
        for text, wanted in ((text_of(MEMBERSHIP, "3.4.0"), b"3.4.0"), (text_of(MEMBERSHIP, ""), b"3.5.0")):
            records = installed(reader(buckets(), text=text)).records(Bucket.CLUSTER)
            self.assertEqual(records[b"clusterVersion"], wanted)

    def test_members_that_do_not_agree_with_the_message(self) -> None:
        """Who counts is a matter of the message; members that contradict it are refused."""
        for state, text in (
            (ConfState((A.id, B.id, 9), (NEW.id,)), "nothing is known of member 9, which counts by the message"),
            (ConfState((A.id,), (NEW.id,)), "member b2 does not count by the message"),
            (ConfState((A.id, B.id, NEW.id)), "the members are not those of the message"),
            (ConfState((A.id,), (B.id, NEW.id)), "the members are not those of the message"),
            (ConfState((A.id, B.id), (NEW.id,), (A.id,)), "the members are not those of the message"),
            (ConfState(), "member a1 does not count by the message"),
        ):
            error = self.assertRaises(SnapshotDamagedError, reader, buckets(), META._replace(conf_state=state))
            self.assertIn(text, str(error))
        error = self.assertRaises(
            SnapshotDamagedError, reader, buckets(), text=text_of(Membership(MEMBERSHIP.members, [A.id]), "")
        )
        self.assertEqual(str(error), "member a1 is a member and removed")
        error = self.assertRaises(SnapshotDamagedError, reader, buckets(), text=b"{}")
        self.assertEqual(str(error), "the message's v2 store cannot be read: it has no root")


def change(bucket: bytes, key: bytes, value: bytes | None) -> Callable[[Buckets], object]:
    """Has a bucket hold something else; None takes it away."""

    def apply(contents: Buckets) -> None:
        if value is None:
            del contents[bucket][key]
        else:
            contents[bucket][key] = value

    return apply


def pair(key: bytes = b"k", create_revision: int = 8, mod_revision: int = 8, version: int = 1) -> bytes:
    """A key-value pair that was put at revision 8, unless something else is said."""
    made = KeyValue(key=key, create_revision=create_revision, mod_revision=mod_revision, version=version)
    return made.SerializeToString()


DAMAGES = {
    "the database has no bucket lease": lambda contents: contents.pop(b"lease"),
    "bucket meta: consistent_index has 0 bytes": change(b"meta", b"consistent_index", None),
    "bucket meta: consistent_index has 7 bytes": change(b"meta", b"consistent_index", bytes(7)),
    "the database is at index 41, behind the message's 42": change(b"meta", b"consistent_index", number(41)),
    "the database is at index 43, ahead of the message's 42": change(b"meta", b"consistent_index", number(43)),
    "the database is of term 2 and the message of term 3": change(b"meta", b"term", number(2)),
    "bucket meta: term has 1 bytes": change(b"meta", b"term", b"3"),
    "bucket meta: finishedCompactRev is no revision": change(b"meta", b"finishedCompactRev", bytes(16)),
    "bucket meta: scheduledCompactRev is no revision": change(b"meta", b"scheduledCompactRev", revision(MAX_MAIN + 1)),
    "bucket key: 0102 is no revision": change(b"key", b"\x01\x02", pair()),
    f"bucket key: {revision(8, mark=b'x').hex()} is no revision": change(b"key", revision(8, mark=b"x"), pair()),
    "is no revision that can be: 0, 0": change(b"key", revision(0), pair()),
    f"is no revision that can be: {MAX_MAIN + 1}, 0": change(b"key", revision(MAX_MAIN + 1), pair()),
    f"is no revision that can be: 8, {SUB_MASK + 1}": change(b"key", revision(8, SUB_MASK + 1), pair()),
    f"bucket key: {revision(7, mark=b't').hex()} is there twice": change(b"key", revision(7, mark=b"t"), pair()),
    f"bucket key: {revision(8).hex()} cannot be read": change(b"key", revision(8), b"\xff"),
    "names no key": change(b"key", revision(8), pair(key=b"")),
    f"bucket key: {revision(8).hex()} contradicts itself": change(b"key", revision(8), pair(mod_revision=7)),
    f"bucket key: {revision(9).hex()} contradicts itself": change(b"key", revision(9), pair()),
    f"bucket key: {revision(10).hex()} contradicts itself": change(
        b"key", revision(10), pair(mod_revision=10, create_revision=11)
    ),
    f"bucket key: {revision(11).hex()} contradicts itself": change(
        b"key", revision(11), pair(mod_revision=11, version=0)
    ),
    f"bucket lease: {number(0x77).hex()} cannot be read": change(b"lease", number(0x77), b"\xff"),
    f"bucket lease: {number(0x77).hex()} holds lease 0": change(b"lease", number(0x77), b""),
    f"bucket lease: {number(9).hex()} holds lease 8": change(b"lease", number(9), Lease(ID=8).SerializeToString()),
    "bucket alarm: ff cannot be read": change(b"alarm", b"\xff", b""),
    "bucket auth: 61757468456e61626c6564 has 0 bytes": change(b"auth", b"authEnabled", b""),
    "bucket authUsers: 61 holds another user": change(b"authUsers", b"a", User(name=b"b").SerializeToString()),
    "bucket authUsers: 62 cannot be read": change(b"authUsers", b"b", b"\xff"),
    "bucket authRoles: 61 holds another role": change(b"authRoles", b"a", Role(name=b"b").SerializeToString()),
    "bucket cluster: 646f776e6772616465 cannot be read": change(b"cluster", b"downgrade", b"[]"),
    "bucket members: 6131 cannot be read": change(b"members", b"a1", b"{}"),
    "bucket members: 6131 describes member b2": change(b"members", b"a1", B.to_json()),
    "bucket members_removed: 30 cannot be read": change(b"members_removed", b"0", b""),
    "bucket members_removed: 3037 cannot be read": change(b"members_removed", b"07", b""),
}


class DamageTests(SynchronousTestCase):
    """What is refused."""

    def test_each_damage_is_named(self) -> None:
        """Whatever does not fit is one kind of error, whose one line says what and where."""
        for text, damage in DAMAGES.items():
            contents = buckets()
            damage(contents)
            with self.assertRaises(SnapshotDamagedError) as caught:
                reader(contents).examine()
            self.assertIn(text, str(caught.exception))
            self.assertEqual(len(str(caught.exception).splitlines()), 1)

    def test_a_version_that_is_no_text(self) -> None:
        """It is looked at where it is needed."""
        contents = buckets()
        contents[b"cluster"][b"clusterVersion"] = b"\xff"
        source = reader(contents, text=text_of(MEMBERSHIP, ""))
        self.assertIn("cannot be read", str(self.assertRaises(SnapshotDamagedError, source.examine)))

    def test_keys_that_do_not_ascend(self) -> None:
        """A tree whose pages are in disorder is noticed."""
        data = bytearray(written(buckets()))
        at = data.index(revision(5))
        data[at : at + 17] = revision(1)
        source = SnapshotReader(bytes(data), META, text_of(MEMBERSHIP, ""))
        error = self.assertRaises(SnapshotDamagedError, source.examine)
        self.assertEqual(str(error), f"bucket key: {revision(1).hex()} does not come after {revision(2, 1).hex()}")

    def test_a_cut_file(self) -> None:
        """A file that lacks its end is refused before anything is read of it."""
        data = written(buckets())
        for size in (0, 100, PAGE_BYTES, len(data) // 2, len(data) - PAGE_BYTES, len(data) - 1):
            error = self.assertRaises(SnapshotDamagedError, SnapshotReader, data[:size], META, b"")
            self.assertIn("the database is damaged: ", str(error))
        self.assertIn(f"the file ends after {len(data) - 1} of {len(data)} bytes", str(error))

    def test_the_database_is_not_touched(self) -> None:
        """Damage that only shows in the middle leaves the database as it was."""
        contents = buckets()
        contents[b"key"][revision(9)] = b"\xff"
        backend = MemoryBackend()
        backend.write(Batch([put(1, b"old")]))
        self.assertRaises(SnapshotDamagedError, backend.replace, reader(contents).batches({}))
        self.assertEqual(backend.scan(0, EVERYTHING, 10), [put(1, b"old")])

    @given(st.data())
    @settings(max_examples=300, deadline=None)
    def test_any_damage_is_noticed_or_harmless(self, data: st.DataObject) -> None:
        """Whatever bytes are changed: it is refused as damaged, or what comes out of it is a state to start from."""
        damaged = bytearray(written(buckets()))
        for _ in range(data.draw(st.integers(1, 4))):
            page = data.draw(st.integers(0, len(damaged) // PAGE_BYTES - 1))
            damaged[page * PAGE_BYTES + data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
        try:
            backend = installed(SnapshotReader(bytes(damaged), META, text_of(MEMBERSHIP, "")))
        except SnapshotDamagedError as error:
            self.assertEqual(len(str(error).splitlines()), 1)
        else:
            loaded = load_state(backend, load_config({"data-dir": "d"}, {}))
            self.assertEqual(loaded.membership.conf_state(), META.conf_state)
            rows = backend.scan(0, EVERYTHING, 100)
            self.assertTrue(all(row.revision < pack(loaded.store.revision + 1) for row in rows))
