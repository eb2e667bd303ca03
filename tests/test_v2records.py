"""The v2 store in the database: whatever is done to it, it comes back as it was."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.v2trees import START_NS, change_tree, content, new_store, told
from twistedkv.clusternodes import facts
from twistedkv.members import MemberInfo, Membership
from twistedkv.storage.backend import Bucket
from twistedkv.storage.directory import Directory
from twistedkv.v2errors import V2Error
from twistedkv.v2events import Action
from twistedkv.v2records import DirectoryRecords, load_directory, records_of, store_of
from twistedkv.v2watch import History, V2Hub

NODES, EVENTS, META = Bucket.DIRECTORY, Bucket.DIRECTORY_EVENTS, Bucket.META


class Kept:
    """A store with its records.

    Args:
        directory: a new one if there is none.
        hub: its sink.
    """

    def __init__(self, directory: Directory | None = None, hub: V2Hub | None = None) -> None:
        self.hub = hub or V2Hub()
        self.directory = directory or Directory(self.hub)
        self.records = DirectoryRecords(self.directory, self.hub)
        self.database: dict[Bucket, dict[bytes, bytes]] = {NODES: {}, EVENTS: {}, META: {}}
        self.writes: list[tuple[Bucket, bytes, bytes | None]] = []

    def drain(self) -> list[tuple[Bucket, bytes, bytes | None]]:
        """What the write-behind does; what was written."""
        self.writes = []
        self.records.drain(self.record)
        return self.writes

    def record(self, bucket: Bucket, key: bytes, value: bytes | None) -> None:
        self.writes.append((bucket, key, value))
        if value is None:
            self.database[bucket].pop(key, None)
        else:
            self.database[bucket][key] = value

    def load(self) -> tuple[Directory, V2Hub]:
        """The store that the records hold."""
        index = self.database[META].get(b"directory_index")
        return store_of(self.database[NODES], self.database[EVENTS], index, Membership(), "")

    def restart(self) -> Kept:
        """Another member on the same records."""
        again = Kept(*self.load())
        again.database = self.database
        return again


class RoundTripTests(SynchronousTestCase):
    """There and back."""

    @given(st.integers(0, 1 << 32), st.integers(0, 120), st.sampled_from((0.02, 0.3)))
    @settings(max_examples=25, deadline=None)
    def test_it_is_as_it_was(self, seed: int, length: int, rate: float) -> None:
        """Whatever was done, written at any time, by a member that was started again meanwhile: tree, history, index
        and ends are what they were."""
        dice, kept = Random(seed), Kept()
        for _ in range(length):
            change_tree(kept.directory, dice)
            if dice.random() < rate:
                kept.drain()
                if dice.random() < rate:
                    kept = kept.restart()
        kept.drain()
        directory, hub = kept.load()
        self.assertEqual(content(directory), content(kept.directory))
        self.assertEqual(directory.index, kept.directory.index)
        self.assertEqual(directory.first_end_ns, kept.directory.first_end_ns)
        self.assertEqual(told(hub.history), told(kept.hub.history))
        self.assertIs(directory.sink, hub)
        self.assertEqual((directory.changed, hub.history.fresh), (set(), 0))

    def test_all_at_once(self) -> None:
        """The records of a whole store, for another database, are those that make it."""
        directory, history = new_store()
        dice = Random(3)
        for _ in range(400):
            change_tree(directory, dice)
        found: dict[Bucket, dict[bytes, bytes]] = {NODES: {}, EVENTS: {}}
        for bucket, key, value in records_of(directory, history):
            found[bucket][key] = value
        again, hub = load_directory(found[NODES], found[EVENTS], directory.index)
        self.assertEqual(content(again), content(directory))
        self.assertEqual(told(hub.history), told(history))

    def test_long_paths_and_deep_ones(self) -> None:
        """A path that is longer than a key may be is in the value, and is found when its node is changed or removed."""
        kept = Kept()
        deep = "/1" + "/d" * 1_200
        kept.directory.set(deep, False, "1")
        kept.directory.set("/1/" + "ä" * 600, False, "2")
        kept.drain()
        self.assertEqual({len(key) for key in kept.database[NODES] if key[:1] == b"#"}, {65})
        self.assertLessEqual(max(map(len, kept.database[NODES])), 1000)
        kept.directory.set(deep, False, "3")
        kept.drain()
        directory, _ = kept.load()
        self.assertEqual(content(directory), content(kept.directory))
        kept.directory.delete("/1/d", recursive=True)
        kept.directory.delete("/1/" + "ä" * 600)
        kept.drain()
        self.assertEqual(kept.database[NODES], {})

    def test_every_action(self) -> None:
        """Each kind of event comes back as it was, with and without a node of before."""
        kept = Kept()
        tree = kept.directory
        tree.create("/1/a", False, "", START_NS)
        tree.set("/1/a", False, "\udcff", START_NS, refresh=True)
        tree.update("/1/a", "v", START_NS)
        tree.compare_and_swap("/1/a", "v", 0, "w")
        tree.compare_and_delete("/1/a", "w", 0)
        tree.set("/1/d", True, "", START_NS + 7)
        tree.expire(START_NS + 7)
        tree.create("/1/d", True, "")
        tree.delete("/1/d", is_dir=True)
        kept.drain()
        _, hub = kept.load()
        self.assertEqual(told(hub.history), told(kept.hub.history))
        self.assertEqual({event.action for event in hub.history.events}, set(Action) - {Action.GET})


class DrainTests(SynchronousTestCase):
    """What is written, and when."""

    def setUp(self) -> None:
        self.kept = Kept()

    def test_a_key_that_is_written_often(self) -> None:
        """It is one record, the events are another, and the index is the third."""
        for number in range(500):
            self.kept.directory.set("/1/k", False, str(number))
        self.assertEqual([key for _, key, _ in self.kept.drain()], [b"/1/k", b"%020d" % 1, b"directory_index"])
        self.assertEqual(self.kept.database[META], {b"directory_index": b"500"})

    def test_nothing_to_do(self) -> None:
        """A new store has nothing to keep, nor one that was just written, nor one that has refused a request."""
        records = self.kept.records
        self.assertEqual((records.pending, records.pending_bytes, self.kept.drain()), (0, 0, []))
        self.kept.directory.set("/1/k", False, "v")
        self.assertEqual(records.pending, 2)
        self.kept.drain()
        self.assertEqual((records.pending, records.pending_bytes, self.kept.drain()), (0, 0, []))
        self.assertRaises(V2Error, self.kept.directory.create, "/1/k", False, "v")
        self.assertEqual(self.kept.drain(), [])

    def test_how_much_is_due(self) -> None:
        """It grows with each change, by what it takes about, however often it is asked, also without a record more."""
        records, told = self.kept.records, [0]
        for _ in range(5):
            self.kept.directory.set("/1/k", False, "v" * 10_000)
            told += [records.pending_bytes, records.pending_bytes]
        self.assertEqual(records.pending, 2)
        for before, first, again in zip(told[::2], told[1::2], told[2::2], strict=False):
            self.assertGreater(first - before, 20_000)
            self.assertLess(first - before, 31_000)
            self.assertEqual(first, again)
        self.kept.drain()
        self.kept.directory.delete("/1/k")
        self.assertGreater(records.pending_bytes, 10_000)  # of the event, which shows the value
        for _ in range(2_000):
            self.kept.directory.set("/1/k", False, "")
        self.assertLess(records.pending_bytes, 400_000)  # of no more events than are kept

    def test_events_are_kept_as_long_as_they_are_known(self) -> None:
        """A record of events goes when the history has none of them any more, also across restarts."""
        kept, dice = self.kept, Random(5)
        for _ in range(120):
            for number in range(dice.choice((1, 3, 90))):
                kept.directory.set("/1/k", False, str(number))
            kept.drain()
            if dice.random() < 0.2:
                kept = kept.restart()
            firsts = [int(key) for key in sorted(kept.database[EVENTS])]
            history = kept.hub.history
            self.assertLessEqual(firsts[0], history.first)
            self.assertTrue(all(first > history.first for first in firsts[1:]))
            _, hub = kept.load()
            self.assertEqual(told(hub.history), told(history))
        self.assertEqual(len(kept.hub.history.events), 1000)

    def test_more_than_are_kept(self) -> None:
        """Of more events than the history has in it only those are written, and what was written before goes."""
        self.kept.directory.set("/1/k", False, "first")
        self.kept.drain()
        for number in range(2_500):
            self.kept.directory.set("/1/k", False, str(number))
        self.kept.drain()
        self.assertEqual(list(self.kept.database[EVENTS]), [b"%020d" % 1_502])
        _, hub = self.kept.load()
        self.assertEqual((hub.history.first, hub.history.last), (1_502, 2_501))

    def test_large_events(self) -> None:
        """No record of events is larger than a few MiB, but for one that a single event makes so."""
        for number in range(12):
            self.kept.directory.set(f"/1/{number}", False, "v" * (1 << 20))
        self.kept.drain()
        sizes = [len(chunk) for chunk in self.kept.database[EVENTS].values()]
        self.assertEqual(len(sizes), 3)
        self.assertLess(max(sizes), 6 << 20)
        _, hub = self.kept.load()
        self.assertEqual(told(hub.history), told(self.kept.hub.history))

    def test_a_store_that_is_replaced(self) -> None:
        """After a snapshot has taken the place of tree, history and database, what follows is written to that one."""
        kept = self.kept
        for number in range(20):
            kept.directory.set("/1/old", False, str(number))
        other = Kept()
        for number in range(1_500):
            other.directory.set("/1/new", False, str(number))
            if number % 100 == 0:
                other.drain()
        other.drain()
        kept.database = other.database
        directory, hub = kept.load()
        kept.directory.restore(directory)
        kept.hub.restored(hub.history)
        self.assertEqual((kept.records.pending, kept.drain()), (0, []))
        for number in range(150):
            kept.directory.set("/1/newer", False, str(number))
        gone = [key for bucket, key, value in kept.drain() if value is None]
        self.assertEqual(gone, [b"%020d" % 402, b"%020d" % 502])
        again, hub = kept.load()
        self.assertEqual(content(again), content(kept.directory))
        self.assertEqual(told(hub.history), told(kept.hub.history))


class FoundTests(SynchronousTestCase):
    """A database of before."""

    def test_without_an_index(self) -> None:
        """The tree is that of the cluster that the database knows, and is kept with the next batch."""
        member = MemberInfo(0x1C, ("http://192.0.2.1:2380",), "m1")
        directory, hub = store_of({}, {}, None, Membership({member.id: member}, [7]), "3.5.0")
        self.assertEqual(facts(directory).membership.members, {0x1C: member})
        kept = Kept(directory, hub)
        self.assertEqual(kept.records.pending, 8)
        self.assertGreater(kept.records.pending_bytes, 300)
        kept.drain()
        again, hub = kept.load()
        self.assertEqual(content(again), content(directory))
        self.assertEqual((again.index, len(hub.history.events)), (4, 4))

    def test_an_empty_one(self) -> None:
        """It has the three directories that are always there, and no index."""
        directory, hub = store_of({}, {}, None, Membership(), "")
        self.assertEqual([node.path for node in directory.nodes()], ["/", "/0", "/1"])
        self.assertEqual((directory.index, Kept(directory, hub).drain()), (0, []))


class DamageTests(SynchronousTestCase):
    """Records that cannot be."""

    def test_each_damage_is_refused(self) -> None:
        """Whatever does not fit is one kind of error of one line."""
        kept = Kept()
        kept.directory.set("/1/d/k", False, "value", START_NS)
        kept.directory.set("/1/e", True, "")
        kept.directory.set("/1/" + "n" * 1_000, False, "value")
        kept.drain()
        nodes, events = kept.database[NODES], kept.database[EVENTS]
        key = b"/1/d/k"
        (chunk,) = events.values()
        first, second = b"%020d" % 1, b"%020d" % 4
        (long,) = (each for each in nodes if each[:1] == b"#")
        empty = nodes[b"/1/e"]
        load_directory(nodes, events, 3)
        for some_nodes, some_events, index in (
            (nodes, events, b"x"),
            (nodes, events, b""),
            (nodes, events, b"-3"),
            (nodes, events, b"2"),
            (nodes, events, b"4"),
            (nodes, events, None),
            ({}, events, None),
            ({**nodes, key: b""}, events, b"3"),
            ({**nodes, key: nodes[key][:20]}, events, b"3"),
            ({**nodes, key: b"\x02" + nodes[key][1:]}, events, b"3"),
            ({**nodes, b"/1/e": empty + b"value"}, events, b"3"),
            ({**nodes, b"no path": nodes[key]}, events, b"3"),
            ({**nodes, b"/1/d/k/below": nodes[key]}, events, b"3"),
            ({**nodes, b"/1/x/k": nodes[key]}, events, b"3"),
            ({**nodes, b"/1//k": nodes[key]}, events, b"3"),
            ({**nodes, b"/1": nodes[key]}, events, b"3"),
            ({**nodes, b"#" + b"0" * 64: nodes[long]}, events, b"3"),
            ({**nodes, long: nodes[long][:500]}, events, b"3"),
            ({each: nodes[each] for each in nodes if each != b"/1/d"}, events, b"3"),
            (nodes, {b"x": chunk}, b"3"),
            (nodes, {first: chunk[:-1]}, b"3"),
            (nodes, {first: chunk[:-1050]}, b"3"),
            (nodes, {first: chunk[:20]}, b"3"),
            (nodes, {first: b"\x63" + chunk[1:]}, b"3"),
            (nodes, {b"%020d" % 2: chunk}, b"3"),
            (nodes, {first: chunk + chunk}, b"3"),
            (nodes, {first: chunk, b"%020d" % 7: chunk}, b"3"),
            (nodes, {first: chunk, second: chunk}, b"3"),
        ):
            error = self.assertRaises(ValueError, store_of, some_nodes, some_events, index, Membership(), "")
            self.assertEqual(len(str(error).splitlines()), 1)

    @given(st.data())
    @settings(max_examples=50, deadline=None)
    def test_any_damage_is_refused_or_harmless(self, data: st.DataObject) -> None:
        """Whatever bytes are changed: it is a ValueError, or a store that can be written and read again."""
        kept, dice = Kept(), Random(1)
        for _ in range(12):
            change_tree(kept.directory, dice)
        kept.drain()
        bucket = data.draw(st.sampled_from((NODES, EVENTS)))
        records = kept.database[bucket]
        key = data.draw(st.sampled_from(sorted(records)))
        damaged = bytearray(records[key])
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, min(len(damaged), 80) - 1))] = data.draw(st.integers(0, 255))
        records[key] = bytes(damaged)
        try:
            directory, hub = kept.load()
        except ValueError as error:
            self.assertEqual(len(str(error).splitlines()), 1)
        else:
            found: dict[Bucket, dict[bytes, bytes]] = {NODES: {}, EVENTS: {}}
            for where, name, value in records_of(directory, hub.history):
                found[where][name] = value
            again, other = load_directory(found[NODES], found[EVENTS], directory.index)
            self.assertEqual(content(again), content(directory))
            self.assertEqual(told(other.history), told(hub.history))

    def test_history_of_nobody(self) -> None:
        """A history that did not come out of records, and one that did, go on in the same way."""
        kept = Kept()
        kept.hub.history = History()
        kept.directory.set("/1/k", False, "v")
        kept.drain()
        self.assertEqual(list(kept.database[EVENTS]), [b"%020d" % 1])
