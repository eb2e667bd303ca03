"""Watches, rule by rule: how they are made and ended, and what each of them sees."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.watchworld import NODELETE, NOPUT, World, create, events_of
from twistedkv.errors import CompactedError
from twistedkv.pb.kv_pb2 import Event, KeyValue
from twistedkv.pb.rpc_pb2 import WatchCreateRequest, WatchResponse
from twistedkv.storage.mvcc import Change
from twistedkv.watch import PROGRESS_INTERVAL_S, RETRY_S
from twistedkv.watchevents import RESPONSE_BYTES


class StreamRuleTests(SynchronousTestCase):
    """§6: how watches are made and ended."""

    def setUp(self) -> None:
        self.world = World()
        self.client, self.stream = self.world.open()

    def only(self) -> WatchResponse:
        self.world.settle()
        (response,) = self.client.read()
        return response

    def test_created_names_the_id_and_the_revision(self) -> None:
        """A watch is confirmed with its id and the current revision, before any event."""
        self.world.write((b"k", b"1"))
        self.stream.create(create(start_revision=1))
        self.world.settle()
        created, events = self.client.read()
        self.assertEqual((created.watch_id, created.created, created.canceled), (0, True, False))
        header = created.header
        self.assertEqual((header.cluster_id, header.member_id, header.revision, header.raft_term), (7, 9, 2, 3))
        self.assertEqual([event.kv.value for event in events.events], [b"1"])

    def test_ids(self) -> None:
        """The server picks ids from 0 and skips what is taken; a client's own may be negative; none is given twice."""
        for wanted, given_id in ((0, 0), (1, 1), (0, 2), (-7, -7), (2, -1), (0, 3), (1, -1)):
            self.stream.create(create(watch_id=wanted))
            response = self.only()
            self.assertEqual((response.watch_id, response.created), (given_id, True))
            if given_id == -1:
                self.assertTrue(response.canceled)
                self.assertEqual(response.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream")

    def test_an_empty_range_is_refused(self) -> None:
        """A range whose end is not behind its start is refused with the id -1."""
        for end in (b"a", b"b"):
            self.stream.create(WatchCreateRequest(key=b"b", range_end=end))
            response = self.only()
            self.assertEqual((response.watch_id, response.created, response.canceled), (-1, True, True))
            self.assertEqual(response.cancel_reason, "mvcc: watcher range is empty")
        self.assertEqual(self.world.hub.watchers, 0)

    def test_an_empty_key_stands_for_the_lowest(self) -> None:
        """An empty key is the key of one zero byte; with the range end of one zero byte it is everything."""
        self.stream.create(WatchCreateRequest())
        self.stream.create(WatchCreateRequest(range_end=b"\0"))
        self.client.read()
        self.world.write((b"k", b"1"), (b"\0", b"2"))
        by_id = {response.watch_id: [event.kv.key for event in response.events] for response in self.client.read()}
        self.assertEqual(by_id, {0: [b"\0"], 1: [b"k", b"\0"]})

    def test_cancel(self) -> None:
        """A cancelled watch is confirmed and sees nothing more; an unknown id gets no answer; the id is free again."""
        self.stream.create(create())
        self.client.read()
        self.stream.cancel(5)
        self.assertEqual(self.client.read(), [])
        self.stream.cancel(0)
        response = self.only()
        self.assertEqual((response.watch_id, response.canceled, response.created), (0, True, False))
        self.assertEqual(response.header.revision, 1)
        self.world.write((b"k", b"1"))
        self.assertEqual(self.client.read(), [])
        self.stream.create(create(watch_id=7))
        self.stream.cancel(7)
        self.stream.create(create(watch_id=7))
        self.assertEqual([response.watch_id for response in self.client.read()], [7, 7, 7])

    def test_close_frees_everything(self) -> None:
        """When the client is gone nothing is left of its watches, and the store tells nobody."""
        self.stream.create(create(progress_notify=True))
        self.stream.create(create(start_revision=100))
        self.world.write((b"k", b"1"))
        self.client.room = False
        self.world.write((b"k", b"2"))
        self.stream.close()
        self.stream.close()
        hub = self.world.hub
        self.assertEqual((hub.watchers, hub.streams, hub.behind), (0, 0, 0))
        self.assertIsNone(self.world.store.listener)
        self.world.settle()
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_compacted_start(self) -> None:
        """A start below the compact revision is confirmed, then ended with the compact revision and no reason."""
        for number in range(5):
            self.world.write((b"k", b"%d" % number))
        self.world.compact(4)
        self.stream.create(create(start_revision=3))
        self.stream.create(create(start_revision=4))
        self.world.settle()
        created, _, ended, events = self.client.read()
        self.assertTrue(created.created)
        self.assertEqual((ended.watch_id, ended.canceled, ended.compact_revision), (0, True, 4))
        self.assertEqual((ended.header.revision, ended.cancel_reason), (0, ""))
        self.assertEqual([event.kv.mod_revision for event in events.events], [4, 5, 6])
        self.assertEqual(self.world.hub.watchers, 1)
        self.stream.cancel(0)  # as in etcd the id is still there to be cancelled
        self.assertTrue(self.only().canceled)

    def test_negative_start(self) -> None:
        """A negative start is a compacted one, as in 3.5.1, except -1 where nothing was compacted."""
        self.world.write((b"k", b"1"))
        self.stream.create(create(start_revision=-5))
        self.stream.create(create(start_revision=-1))
        self.world.settle()
        _, _, ended, events = self.client.read()
        self.assertEqual((ended.watch_id, ended.compact_revision, ended.canceled), (0, -1, True))
        self.assertEqual(len(events.events), 1)

    def test_future_start(self) -> None:
        """A watch on a future revision sees nothing of what happens before (etcd issue 20221)."""
        self.stream.create(create(start_revision=4))
        self.client.read()
        self.stream.progress()
        self.world.write((b"k", b"2"))
        self.assertEqual(self.client.read(), [])  # a notice now would have its client resume too early
        self.world.write((b"k", b"3"))
        self.assertEqual([response.watch_id for response in self.client.read()], [-1])
        self.world.write((b"k", b"4"))
        self.assertEqual([event.kv.value for event in events_of(self.client.read())], [b"4"])

    def test_filters(self) -> None:
        """Filtered events are left out; where all are, nothing is sent."""
        self.stream.create(create(filters=[NOPUT]))
        self.stream.create(create(filters=[NODELETE]))
        self.stream.create(create(filters=[NOPUT, NODELETE]))
        self.client.read()
        self.world.write((b"k", b"1"))
        self.assertEqual([response.watch_id for response in self.client.read()], [1])
        self.world.write((b"k", None))
        (response,) = self.client.read()
        self.assertEqual(response.watch_id, 0)
        kv = response.events[0].kv
        self.assertEqual((kv, response.events[0].type), (KeyValue(key=b"k", mod_revision=3), Event.DELETE))

    def test_previous_pairs(self) -> None:
        """prev_kv is the pair before the change: none for a new key, and none if that revision is compacted."""
        self.stream.create(create(prev_kv=True))
        for value in (b"1", b"2", None, b"3"):
            self.world.write((b"k", value))
        events = events_of(self.client.read())
        previous = [event.prev_kv.value if event.HasField("prev_kv") else None for event in events]
        self.assertEqual(previous, [None, b"1", b"2", None])

    def test_previous_pairs_and_compaction(self) -> None:
        """prev_kv of a past event is missing if the revision before is compacted, wherever the event is kept."""
        for recent in (10_000, 1):
            world = World(recent)
            client, stream = world.open()
            stream.create(create(b"other"))
            for value in (b"1", b"2", None, b"3"):
                world.write((b"k", value))
            world.compact(3)
            stream.create(create(prev_kv=True, start_revision=3))
            world.settle()
            events = events_of(client.read(), 1)
            previous = [event.prev_kv.value if event.HasField("prev_kv") else None for event in events]
            self.assertEqual(previous, [None, b"2", None])

    def test_a_transaction_is_one_response(self) -> None:
        """All changes of a revision come in one response, in their order."""
        self.stream.create(create(b"a", range_end=b"z"))
        self.client.read()
        self.world.write((b"k", b"1"), (b"b", b"2"))
        self.world.write((b"k", None), (b"c", b"3"))
        found = [[event.kv.key for event in response.events] for response in self.client.read()]
        self.assertEqual(found, [[b"k", b"b"], [b"k", b"c"]])


class FragmentTests(SynchronousTestCase):
    """Large responses."""

    def test_fragments(self) -> None:
        """Who asks for it gets a large response in parts, all but the last marked; nobody else does."""
        world = World(fragment_bytes=1_000)
        client, stream = world.open()
        stream.create(create(b"a", range_end=b"z", fragment=True))
        stream.create(create(b"a", range_end=b"z"))
        client.read()
        world.write(*((b"k%d" % number, bytes(300)) for number in range(7)))
        responses = client.read()
        parts = [response for response in responses if response.watch_id == 0]
        self.assertEqual([len(part.events) for part in parts], [3, 3, 1])
        self.assertEqual([part.fragment for part in parts], [True, True, False])
        self.assertEqual([event.kv.key for event in events_of(parts)], [b"k%d" % number for number in range(7)])
        (whole,) = [response for response in responses if response.watch_id == 1]
        self.assertEqual((len(whole.events), whole.fragment), (7, False))

    def test_one_event_is_never_split(self) -> None:
        """An event larger than the limit goes alone."""
        world = World(fragment_bytes=1_000)
        client, stream = world.open()
        stream.create(create(b"a", range_end=b"z", fragment=True))
        client.read()
        world.write((b"a", bytes(3_000)), (b"b", b""), (b"c", bytes(3_000)))
        self.assertEqual(
            [(len(part.events), part.fragment) for part in client.read()], [(1, True), (1, True), (1, False)]
        )
        world.write((b"a", bytes(3_000)))
        self.assertEqual([(len(part.events), part.fragment) for part in client.read()], [(1, False)])

    def test_much_history_comes_in_several_responses_of_whole_revisions(self) -> None:
        """A client's limit for messages is not met by a long history; a revision is never torn."""
        world = World()
        for number in range(12):
            world.write((b"k%d" % number, bytes(RESPONSE_BYTES // 3)), (b"l%d" % number, b""))
        client, stream = world.open()
        stream.create(create(b"a", range_end=b"z", start_revision=1))
        world.settle()
        responses = client.read()[1:]
        self.assertEqual(len(responses), 4)
        self.assertEqual([len(response.events) for response in responses], [6, 6, 6, 6])


class ProgressTests(SynchronousTestCase):
    """Notices that all was sent up to a revision."""

    def test_asked_for_on_a_synced_stream(self) -> None:
        """A notice that is asked for is given at once, with the id -1 and the current revision, without a watch too."""
        world = World()
        client, stream = world.open()
        world.write((b"k", b"1"))
        stream.progress()
        (response,) = client.read()
        self.assertEqual((response.watch_id, response.header.revision), (-1, 2))
        stream.create(create())
        client.read()
        world.write((b"k", b"2"), dispatch=False)
        stream.progress()
        events, notice = client.read()
        self.assertEqual((len(events.events), notice.watch_id, notice.header.revision), (1, -1, 3))

    def test_never_overtakes_events(self) -> None:
        """A notice waits for the events before it, however long the client does not read (etcd issue 15220)."""
        world = World()
        client, stream = world.open()
        stream.create(create())
        client.read()
        client.room = False
        world.write((b"k", b"1"))
        stream.progress()
        stream.progress()
        world.settle()
        self.assertEqual(client.read(), [])
        world.write((b"k", b"2"))
        client.room = True
        stream.room()
        world.settle()
        events, *notices = client.read()
        self.assertEqual([event.kv.value for event in events.events], [b"1", b"2"])
        self.assertEqual([(notice.watch_id, notice.header.revision) for notice in notices], [(-1, 3), (-1, 3)])

    def test_waits_for_history(self) -> None:
        """A notice does not overtake a history that is still being read; a cancelled watch holds it up no more."""
        world = World()
        world.write((b"k", b"1"))
        world.hold_replays = True
        client, stream = world.open()
        stream.create(create(start_revision=1))
        stream.progress()
        world.settle()
        self.assertEqual([response.created for response in client.read()], [True])
        world.answer_replay()
        events, notice = client.read()
        self.assertEqual((len(events.events), notice.watch_id), (1, -1))
        stream.create(create(start_revision=1))
        stream.progress()
        world.settle()
        stream.cancel(1)
        self.assertEqual([response.watch_id for response in client.read()], [1, 1, -1])

    def test_periodic(self) -> None:
        """Who asked for it is told from time to time that nothing happened; not after an event, and not if behind."""
        world = World()
        client, stream = world.open()
        stream.create(create(progress_notify=True))
        stream.create(create())
        stream.create(create(progress_notify=True, start_revision=50))
        client.read()
        world.write((b"k", b"1"))
        client.read()
        world.clock.advance(PROGRESS_INTERVAL_S * 1.1)
        self.assertEqual(client.read(), [])
        world.clock.advance(PROGRESS_INTERVAL_S * 1.1)
        (notice,) = client.read()
        self.assertEqual((notice.watch_id, notice.header.revision, len(notice.events)), (0, 2, 0))
        client.room = False
        world.write((b"k", b"2"))
        world.clock.advance(PROGRESS_INTERVAL_S * 1.1)
        world.clock.advance(PROGRESS_INTERVAL_S * 1.1)
        self.assertEqual(client.read(), [])
        stream.cancel(0)
        stream.cancel(2)
        world.clock.advance(PROGRESS_INTERVAL_S * 1.1)
        self.assertEqual(world.clock.getDelayedCalls(), [])


class BehindTests(SynchronousTestCase):
    """Watchers that start in the past, or whose client does not read."""

    def test_a_client_that_does_not_read_costs_nothing(self) -> None:
        """What it has not read is not kept for it, and its neighbour sees everything at once."""
        world = World()
        slow, slow_stream = world.open()
        quick, quick_stream = world.open()
        slow_stream.create(create())
        quick_stream.create(create())
        slow.room = False
        for number in range(3_000):
            world.write((b"k", b"%d" % number))
        world.settle()
        self.assertEqual(len(slow.unread), 1)
        self.assertEqual((world.hub.behind, len(world.hub.fresh)), (1, 0))
        self.assertEqual(len(events_of(quick.read())), 3_000)
        slow.room = True
        slow_stream.room()
        world.settle()
        self.assertEqual([event.kv.value for event in events_of(slow.read())], [b"%d" % n for n in range(3_000)])
        self.assertEqual((world.reads, world.hub.behind), (0, 0))

    def test_at_most_a_thousand_revisions_a_response(self) -> None:
        """A long history comes in responses of no more than 1,000 revisions, from memory or from the database."""
        for recent in (10_000, 10):
            world = World(recent)
            client, stream = world.open()
            stream.create(create(b"other"))
            for number in range(2_500):
                world.write((b"k", b"%d" % number))
            stream.create(create(start_revision=1))
            world.settle()
            self.assertLessEqual(max(len(response.events) for response in client.unread and client.read()), 1_000)

    def test_watchers_of_the_past_share_a_scan(self) -> None:
        """A hundred watchers that start long ago are served by one reading of the database."""
        world = World(recent=10)
        keeper, keeping = world.open()
        keeping.create(create(b"other"))
        for number in range(500):
            world.write((b"k%d" % (number % 7), b"%d" % number))
        clients = [world.open() for _ in range(100)]
        for position, (_, stream) in enumerate(clients):
            stream.create(create(b"k%d" % (position % 7), start_revision=1 + position))
        world.settle()
        self.assertEqual(world.reads, 1)
        for position, (client, _) in enumerate(clients):
            revisions = [event.kv.mod_revision for event in events_of(client.read())]
            wanted = [n + 2 for n in range(500) if n % 7 == position % 7 and n + 2 >= 1 + position]
            self.assertEqual(revisions, wanted)
        self.assertEqual([response.created for response in keeper.read()], [True])

    def test_different_starts_in_one_round(self) -> None:
        """Who starts late is not shown what was read for one who starts early."""
        for recent in (10_000, 10):
            world = World(recent)
            _, keeping = world.open()
            keeping.create(create(b"other"))
            for number in range(2_500):
                world.write((b"k", b"%d" % number))
            clients = [world.open() for _ in range(3)]
            for (_, stream), start in zip(clients, (1, 1_700, 2_400), strict=True):
                stream.create(create(start_revision=start))
            world.settle()
            for (client, _), start in zip(clients, (1, 1_700, 2_400), strict=True):
                revisions = [event.kv.mod_revision for event in events_of(client.read())]
                self.assertEqual(revisions, list(range(max(start, 2), 2_502)))

    def test_room_for_part_of_it(self) -> None:
        """A client that takes one response of several gets the next ones later, each once."""
        for recent in (10_000, 2):
            world = World(recent)
            for number in range(8):
                world.write((b"k", b"%d" % number + bytes(RESPONSE_BYTES)))
            client, stream = world.open()
            client.most_unread = 2
            stream.create(create(start_revision=1))
            found: list[bytes] = []
            for _ in range(20):
                world.settle()
                found += [event.kv.value[:1] for event in events_of(client.read())]
                stream.room()
            self.assertEqual(found, [b"%d" % number for number in range(8)])

    def test_evicted_pairs_while_the_database_is_slow(self) -> None:
        """A watch for whom the database is read is not served from memory meanwhile."""
        world = World()
        client, stream = world.open()
        stream.create(create(prev_kv=True))
        world.write((b"k", bytes(500)))
        world.evict()
        world.hold_replays = True
        world.write((b"k", b"2"))
        world.settle()
        world.write((b"k", b"3"))
        stream.create(create(start_revision=2))
        world.settle()
        world.hold_replays = False
        while world.replays:
            world.answer_replay()
            world.settle()
        responses = client.read()
        for watch_id, first in ((0, 2), (1, 2)):
            revisions = [event.kv.mod_revision for event in events_of(responses, watch_id)]
            self.assertEqual(revisions, list(range(first, 5)))

    def test_a_new_watch_hears_nothing_of_what_nobody_was_told(self) -> None:
        """When the last watch goes with revisions untold, the next one does not get them."""
        world = World()
        _, stream = world.open()
        stream.create(create())
        world.write((b"k", b"1"), dispatch=False)
        stream.close()
        told: list[int] = []
        world.hub.observe(b"k", b"", 0, lambda revision, _: told.append(revision))
        world.hub.dispatch()
        world.write((b"k", b"2"))
        self.assertEqual(told, [3])

    def test_compaction_while_it_reads(self) -> None:
        """A compaction that overtakes a reading of the past ends the watch with its revision; nothing is lost unsaid
        (etcd issue 17529)."""
        world = World()
        for number in range(10):
            world.write((b"k", b"%d" % number))
        world.hold_replays = True
        client, stream = world.open()
        stream.create(create(start_revision=3))
        stream.create(create(start_revision=8))
        world.settle()
        world.compact(8)
        world.answer_replay()
        world.settle()
        _, _, ended, events = client.read()
        self.assertEqual((ended.watch_id, ended.canceled, ended.compact_revision), (0, True, 8))
        self.assertEqual([event.kv.mod_revision for event in events.events], [8, 9, 10, 11])

    def test_changes_while_the_database_is_slow(self) -> None:
        """A watch may be cancelled, or its client stop to read, while the past is read for it."""
        world = World()
        for number in range(5):
            world.write((b"k", b"%d" % number))
        world.hold_replays = True
        gone, gone_stream = world.open()
        slow, slow_stream = world.open()
        gone_stream.create(create(start_revision=2))
        slow_stream.create(create(start_revision=3))
        world.settle()
        gone_stream.cancel(0)
        slow.room = False
        world.compact(3)
        _, other = world.open()
        other.create(create(start_revision=4))
        world.settle()
        world.hold_replays = False
        world.answer_replay()
        world.settle()
        self.assertEqual([response.canceled for response in gone.read()], [False, True])
        self.assertEqual([response.created for response in slow.read()], [True])
        slow.room = True
        slow_stream.room()
        world.settle()
        self.assertEqual([event.kv.mod_revision for event in events_of(slow.read())], [3, 4, 5, 6])

    def test_compaction_of_a_client_that_does_not_read(self) -> None:
        """Whoever is behind a compaction is told so when it reads again."""
        world = World()
        client, stream = world.open()
        stream.create(create())
        client.read()
        client.room = False
        world.write((b"k", b"1"))
        world.write((b"k", b"2"))
        world.compact(3)
        world.settle()
        self.assertEqual(client.read(), [])
        client.room = True
        stream.room()
        world.settle()
        (ended,) = client.read()
        self.assertEqual((ended.canceled, ended.compact_revision), (True, 3))

    def test_deletions_at_the_compact_revision(self) -> None:
        """A watch from the compact revision on sees the deletion at it (etcd issues 18089 and 19179)."""
        world = World(recent=1)
        world.write((b"k", b"1"))
        deleted = world.write((b"k", None))
        world.compact(deleted)
        client, stream = world.open()
        stream.create(create(start_revision=deleted))
        world.settle()
        _, response = client.read()
        self.assertEqual([(event.type, event.kv.mod_revision) for event in response.events], [(Event.DELETE, deleted)])
        self.assertGreater(world.reads, 0)

    def test_the_database_refuses(self) -> None:
        """A database in trouble is asked again, and nothing is lost."""
        world = World()
        world.write((b"k", b"1"))
        world.broken = True
        client, stream = world.open()
        stream.create(create(start_revision=1))
        world.settle()
        self.assertEqual(world.reads, 1)
        world.clock.advance(RETRY_S)
        self.assertEqual(world.reads, 2)
        world.broken = False
        world.clock.advance(RETRY_S)
        world.settle()
        self.assertEqual(len(events_of(client.read())), 1)

    def test_evicted_pairs_are_fetched(self) -> None:
        """The pair before a change is there although its value had left the memory."""
        world = World()
        client, stream = world.open()
        stream.create(create(prev_kv=True))
        world.write((b"k", bytes(500)))
        world.evict()
        world.write((b"k", b"2"))
        world.write((b"k", b"3"))
        world.settle()
        events = events_of(client.read())
        self.assertEqual([event.prev_kv.value for event in events], [b"", bytes(500), b"2"])
        self.assertEqual(world.reads, 1)

    def test_stopping_leaves_no_timer(self) -> None:
        """A stopped hub does nothing more of its own accord."""
        world = World()
        world.write((b"k", b"1"))
        _, stream = world.open()
        stream.create(create(start_revision=1))
        world.hub.stop()
        self.assertEqual(world.clock.getDelayedCalls(), [])


class ObservationTests(SynchronousTestCase):
    """Watching from inside the member."""

    def setUp(self) -> None:
        self.world = World()
        self.told: list[tuple[int, list[Change]]] = []

    def tell(self, revision: int, changes: list[Change]) -> None:
        self.told.append((revision, changes))

    def test_tells_of_each_revision(self) -> None:
        """Every revision that changes the range is told once, with its changes, from the next one on."""
        self.world.write((b"k", b"0"))
        observation = self.world.hub.observe(b"k", b"l", 0, self.tell)
        self.world.write((b"k", b"1"), (b"a", b""), (b"k2", b"2"))
        self.world.write((b"k", None))
        found = [(revision, [(c.key, c.deleted) for c in changes]) for revision, changes in self.told]
        self.assertEqual(found, [(3, [(b"k", False), (b"k2", False)]), (4, [(b"k", True)])])
        observation.cancel()
        observation.cancel()
        self.world.write((b"k", b"1"))
        self.assertEqual(len(self.told), 2)

    def test_from_the_past(self) -> None:
        """A past revision is told first, then what follows."""
        self.world.write((b"k", b"1"))
        self.world.hub.observe(b"k", b"", 2, self.tell)
        self.world.write((b"k", b"2"))
        self.world.settle()
        self.assertEqual([revision for revision, _ in self.told], [2, 3])

    def test_may_cancel_when_told(self) -> None:
        """Whoever has heard enough may say so at once, and ask for something else."""

        def once(revision: int, changes: list[Change]) -> None:
            self.tell(revision, changes)
            observation.cancel()
            self.world.hub.observe(b"l", b"", 0, self.tell)

        observation = self.world.hub.observe(b"k", b"", 0, once)
        self.world.write((b"k", b"1"), dispatch=False)
        self.world.write((b"k", b"2"), dispatch=False)
        self.world.hub.dispatch()
        self.world.write((b"l", b"3"))
        self.assertEqual([revision for revision, _ in self.told], [2, 4])

    def test_compaction(self) -> None:
        """A compacted start is refused; one that is overtaken is told by an empty list to look again."""
        for _ in range(4):
            self.world.write((b"k", b"1"))
        self.world.compact(3)
        self.assertRaises(CompactedError, self.world.hub.observe, b"k", b"", 2, self.tell)
        self.world.hold_replays = True
        self.world.hub.observe(b"k", b"", 3, self.tell)
        self.world.settle()
        self.world.compact(5)
        self.world.answer_replay()
        self.world.hold_replays = False
        self.world.settle()
        self.assertEqual([(revision, len(changes)) for revision, changes in self.told], [(5, 0), (5, 1)])
