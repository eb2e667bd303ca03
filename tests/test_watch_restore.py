"""Watches across a snapshot: the state of another member takes the place of ours, and nobody misses a change."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.watchworld import Client, World, create, events_of
from twistedkv.storage.mvcc import Change
from twistedkv.watch import RETRY_S
from twistedkv.watchstream import WatchStream


class RestoreTests(SynchronousTestCase):
    """What each watcher hears when the store has jumped ahead."""

    def setUp(self) -> None:
        self.world = World()
        self.client, self.stream = self.world.open()

    def watch(self, *keys: bytes, start: int = 0) -> None:
        """Watch each key, the first one by watch id 0."""
        for key in keys:
            self.stream.create(create(key, start_revision=start))
        self.world.settle()
        self.client.read()

    def jump(self, *values: bytes, compacted: int = 0) -> None:
        """The leader puts ``k`` to each value, compacts, and sends a snapshot, which is installed."""
        store, backend = self.world.leader()
        for value in values:
            self.world.change(store, (b"k", value))
        backend.write(store.take_batch())
        if compacted:
            self.world.compact_of(store, backend, compacted)
        self.world.replace_database(backend)
        self.world.restore()

    def values(self, watch_id: int = 0) -> list[bytes]:
        """What a watch hears now."""
        self.world.settle()
        return [event.kv.value for event in events_of(self.client.read(), watch_id)]

    def test_what_happened_in_between_is_read(self) -> None:
        """Who was told everything gets the rest from the database, once and in order, and then what follows."""
        self.world.write((b"k", b"1"))
        self.watch(b"k")
        self.world.write((b"k", b"2"))
        self.assertEqual(self.values(), [b"2"])
        self.jump(b"3", b"4", b"5")
        self.world.write((b"k", b"6"))
        self.assertEqual(self.values(), [b"3", b"4", b"5", b"6"])
        self.world.write((b"k", b"7"))
        self.assertEqual(self.values(), [b"7"])
        self.assertEqual(self.world.hub.behind, 0)

    def test_what_was_applied_and_not_told(self) -> None:
        """Changes that were applied right before are told too, before those of the snapshot."""
        self.watch(b"k")
        self.world.write((b"k", b"1"), dispatch=False)
        self.jump(b"2")
        self.assertEqual(self.values(), [b"1", b"2"])

    def test_deletions_and_pairs_before(self) -> None:
        """A deletion in between is told, with the pair before it where that is wanted."""
        self.world.write((b"k", b"1"))
        self.stream.create(create(b"k", prev_kv=True))
        store, backend = self.world.leader()
        self.world.change(store, (b"k", None))
        self.world.change(store, (b"k", b"2"))
        backend.write(store.take_batch())
        self.world.replace_database(backend)
        self.world.restore()
        self.world.settle()
        deleted, put = events_of(self.client.read())
        self.assertEqual((deleted.type, deleted.kv.mod_revision, deleted.prev_kv.value), (1, 3, b"1"))
        self.assertEqual((put.kv.value, put.kv.version, put.HasField("prev_kv")), (b"2", 1, False))

    def test_a_future_start(self) -> None:
        """Who waits for a revision still to come waits on; who waited for one in between begins there."""
        self.watch(b"k", start=4)
        self.watch(b"k", start=6)
        self.jump(b"2", b"3", b"4")  # revisions 2, 3 and 4
        self.assertEqual(self.world.hub.behind, 1)
        self.world.settle()
        responses = self.client.read()
        self.assertEqual([event.kv.value for event in events_of(responses, 0)], [b"4"])
        self.assertEqual(events_of(responses, 1), [])
        self.world.write((b"k", b"5"))
        self.world.write((b"k", b"6"))
        responses = self.client.read()
        self.assertEqual([event.kv.value for event in events_of(responses, 0)], [b"5", b"6"])
        self.assertEqual([event.kv.value for event in events_of(responses, 1)], [b"6"])

    def test_compacted_in_between(self) -> None:
        """Who needs a revision that the snapshot was compacted of is told so; who does not goes on."""
        self.watch(b"k")
        self.jump(b"2", b"3", b"4", compacted=3)
        self.world.settle()
        (response,) = self.client.read()
        self.assertEqual((response.canceled, response.compact_revision), (True, 3))
        self.assertEqual(self.world.hub.watchers, 0)
        self.watch(b"k")
        self.jump(b"5", b"6", compacted=5)  # revision 5 is the next one, and still there
        self.assertEqual([self.values(1), self.world.hub.behind], [[b"5", b"6"], 0])

    def test_a_client_that_does_not_read(self) -> None:
        """It is given nothing, and everything once it reads again."""
        self.watch(b"k")
        self.client.room = False
        self.world.write((b"k", b"1"))
        self.jump(b"2")
        self.assertEqual(self.values(), [])
        self.client.room = True
        self.stream.room()
        self.assertEqual(self.values(), [b"1", b"2"])

    def behind(self) -> tuple[Client, WatchStream]:
        """A watch from revision 2 on, for which the database is being read, with three revisions to come."""
        for value in (b"1", b"2", b"3"):
            self.world.write((b"k", value))
        self.world.hold_replays = True
        client, stream = self.world.open()
        stream.create(create(b"k", start_revision=2))
        self.world.settle()
        client.read()
        self.assertEqual(len(self.world.replays), 1)
        return client, stream

    def test_a_read_that_was_under_way(self) -> None:
        """What was read of the state before is delivered, what follows is read of the new one."""
        for read_before in (True, False):
            self.setUp()
            client, _ = self.behind()
            if read_before:
                self.world.read_replays()
            self.jump(b"4", b"5")
            self.world.hold_replays = False
            self.world.answer_replay()
            self.world.settle()
            values = [event.kv.value for event in events_of(client.read())]
            self.assertEqual(values, [b"1", b"2", b"3", b"4", b"5"])

    def test_a_read_of_a_database_that_is_ahead(self) -> None:
        """What is missing in a database that was compacted, of which memory does not know yet, is not taken for all."""
        client, _ = self.behind()
        store, backend = self.world.leader()
        self.world.change(store, (b"k", b"4"))
        backend.write(store.take_batch())
        self.world.compact_of(store, backend, 5)
        self.world.replace_database(backend)
        self.world.answer_replay()
        self.world.settle()
        self.assertEqual(client.read(), [])
        self.world.clock.advance(RETRY_S)  # it asks again, and has no answer when the state comes
        self.assertEqual(len(self.world.replays), 1)
        self.world.restore()
        self.world.answer_replay()
        self.world.settle()
        (response,) = client.read()
        self.assertEqual((response.canceled, response.compact_revision), (True, 5))

    def test_progress(self) -> None:
        """A notice waits until all that happened in between was sent, and names the new revision then."""
        self.watch(b"k")
        self.world.hold_replays = True
        self.jump(b"2", b"3")
        self.stream.progress()
        self.world.settle()
        self.assertEqual(self.client.read(), [])
        self.world.hold_replays = False
        self.world.answer_replay()
        events, notice = self.client.read()
        self.assertEqual([event.kv.value for event in events.events], [b"2", b"3"])
        self.assertEqual((notice.watch_id, notice.header.revision), (-1, 3))

    def test_progress_that_the_jump_makes_true(self) -> None:
        """One that waits for a start in the future is given at once if the snapshot reaches so far."""
        self.watch(b"k", start=5)
        self.stream.progress()
        self.world.settle()
        self.assertEqual(self.client.read(), [])
        self.jump(b"2", b"3", b"4")
        (notice,) = self.client.read()
        self.assertEqual((notice.watch_id, notice.header.revision), (-1, 4))

    def test_observations(self) -> None:
        """Observers inside the member hear of every revision in between, or that they have to look again."""
        told: list[tuple[int, list[bytes]]] = []

        def tell(revision: int, changes: list[Change]) -> None:
            told.append((revision, [change.key for change in changes]))

        self.world.hub.observe(b"k", b"", 0, tell)
        self.jump(b"2", b"3")
        self.world.settle()
        self.assertEqual(told, [(2, [b"k"]), (3, [b"k"])])
        self.jump(b"4", b"5", b"6", compacted=5)
        self.world.settle()
        self.assertEqual(told[2:], [(5, []), (5, [b"k"]), (6, [b"k"])])

    def test_nobody_watches(self) -> None:
        """Then there is nothing to read, and who comes next is told what comes next."""
        self.jump(b"2", b"3")
        self.watch(b"k")
        self.world.write((b"k", b"4"))
        self.assertEqual((self.values(), self.world.reads, self.world.hub.told), ([b"4"], 0, 4))

    def test_after_the_end(self) -> None:
        """A hub that was stopped begins nothing."""
        self.watch(b"k")
        self.world.hub.stop()
        self.jump(b"2")
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
