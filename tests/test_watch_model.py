"""Watches against a model: all that ever happened, and what each watcher should have seen of it."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.watchworld import NODELETE, NOPUT, Past, World, create
from twistedkv.pb.kv_pb2 import Event
from twistedkv.pb.rpc_pb2 import WatchCreateRequest, WatchResponse

KEYS = [b"a", b"aa", b"ab", b"b", b"b\xff", b"c"]
RANGES = [(b"a", b""), (b"a", b"b"), (b"aa", b"ab"), (b"b", b"\0"), (b"\0", b"\0"), (b"a", b"b\xff"), (b"aa", b"c")]

steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("write"),
            st.lists(
                st.tuples(st.sampled_from(KEYS), st.one_of(st.none(), st.integers(0, 400))), min_size=1, max_size=3
            ),
            st.booleans(),
        ),
        st.tuples(st.just("compact"), st.integers(0, 6)),
        st.tuples(st.just("evict")),
        st.tuples(
            st.just("create"),
            st.integers(0, 2),
            st.sampled_from(RANGES),
            st.integers(-8, 4),
            st.sampled_from([(), (NOPUT,), (NODELETE,)]),
            st.booleans(),
            st.booleans(),
        ),
        st.tuples(st.just("cancel"), st.integers(0, 2), st.integers(0, 3)),
        st.tuples(st.just("room"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("progress"), st.integers(0, 2)),
        st.tuples(st.just("turn")),
        st.tuples(st.just("database"), st.booleans()),
        st.tuples(
            st.just("snapshot"),
            st.lists(st.tuples(st.sampled_from(KEYS), st.one_of(st.none(), st.integers(0, 400))), max_size=6),
            st.one_of(st.none(), st.integers(0, 6)),
            st.booleans(),
            st.booleans(),
        ),
    ),
    min_size=15,
    max_size=60,
)


class Expectation:
    """One watch as the model follows it, response by response."""

    def __init__(self, test: SynchronousTestCase, world: World, request: WatchCreateRequest, start: int) -> None:
        self.test = test
        self.world = world
        self.request = request
        self.next = start
        self.parts: list[Event] = []  # of a response whose last fragment is still to come
        self.created = self.ended = False

    def wanted(self) -> list[Past]:
        """What is to come, as of now."""
        request = self.request
        return [
            change
            for change in self.world.past
            if change.revision >= self.next
            and _within(change.key, request.key, request.range_end)
            and (NODELETE if change.deleted else NOPUT) not in request.filters
        ]

    def take(self, response: WatchResponse) -> None:
        """One response of this watch."""
        test = self.test
        if response.created:
            self.created = True
            return
        test.assertTrue(self.created)
        if response.canceled and not response.compact_revision:  # one that a compaction ended can be cancelled, too
            self.ended = True
            return
        test.assertFalse(self.ended)
        if response.canceled:
            self.ended = True
            test.assertLess(self.next, response.compact_revision)
            test.assertLessEqual(response.compact_revision, self.world.store.compacted)
            return
        self.parts.extend(response.events)
        if response.fragment:
            return
        events, self.parts = self.parts, []
        wanted = self.wanted()
        test.assertLessEqual(len(events), len(wanted))
        for event, change in zip(events, wanted, strict=False):
            test.assertEqual((event.kv, event.type == Event.DELETE), (change.pair, change.deleted))
            if not self.request.prev_kv or change.previous is None:
                test.assertFalse(event.HasField("prev_kv"))
            elif event.HasField("prev_kv"):
                test.assertEqual(event.prev_kv, change.previous)
            else:  # that revision was compacted
                test.assertLess(change.revision - 1, self.world.store.compacted)
        self.next = wanted[len(events) - 1].revision + 1
        test.assertEqual(len(events), len(wanted) - len(self.wanted()))  # the last revision came whole


def _within(key: bytes, start: bytes, end: bytes) -> bool:
    return key == start if not end else start <= key and (end == b"\0" or key < end)


class ModelTests(SynchronousTestCase):
    """Anything may happen; every watch sees what it should."""

    @settings(max_examples=150, deadline=None)
    @given(steps, st.sampled_from([1, 3, 10_000]))
    def test_every_watch_sees_every_event_once_and_in_order(self, script: list[Any], recent: int) -> None:
        """Whatever is written, compacted and evicted, and whenever clients read or the state of another member comes
        by a snapshot: no event is missed, repeated or torn from its revision, and a progress notice is true."""
        world = World(recent, fragment_bytes=700)
        streams = [world.open() for _ in range(3)]
        expected: list[dict[int, Expectation]] = [{}, {}, {}]

        def look(number: int) -> None:
            for response in streams[number][0].read():
                if response.watch_id == -1:
                    for watch in expected[number].values():
                        early = [change for change in watch.wanted() if change.revision <= response.header.revision]
                        self.assertTrue(watch.ended or not watch.created or not early)
                else:
                    expected[number][response.watch_id].take(response)

        for step in script:
            match step:
                case ("write", operations, dispatch):
                    unique = dict(operations)
                    world.write(
                        *((key, None if size is None else bytes(size)) for key, size in unique.items()),
                        dispatch=dispatch,
                    )
                case ("compact", back):
                    revision = world.store.revision - back
                    if revision > max(world.store.compacted, 0):
                        world.compact(revision)
                case ("evict",):
                    world.flush()
                    world.evict()
                case ("create", number, (key, end), offset, filters, prev_kv, fragment):
                    start = 0 if offset == 0 else max(1, world.store.revision + offset)
                    request = create(
                        key, range_end=end, start_revision=start, filters=filters, prev_kv=prev_kv, fragment=fragment
                    )
                    watch_id = len(expected[number])
                    expected[number][watch_id] = Expectation(self, world, request, start or world.store.revision + 1)
                    streams[number][1].create(request)
                case ("cancel", number, watch_id):
                    look(number)
                    streams[number][1].cancel(watch_id)
                    look(number)
                case ("room", number, room):
                    streams[number][0].room = room
                    if room:
                        streams[number][1].room()
                case ("progress", number):
                    streams[number][1].progress()
                case ("snapshot", changes, back, read_before, answer_between):
                    store, backend = world.leader()
                    for key, size in changes:
                        world.change(store, (key, None if size is None else bytes(size)))
                    if back is not None and store.revision - back > max(store.compacted, 0):
                        world.compact_of(store, backend, store.revision - back)
                    backend.write(store.take_batch())
                    if read_before:
                        world.read_replays()
                    world.replace_database(backend)
                    while answer_between and world.replays:
                        world.answer_replay()
                    world.restore()
                case ("turn",):
                    world.settle()
                case ("database", answers):
                    world.hold_replays = not answers
                    while answers and world.replays:
                        world.answer_replay()
            for number in range(3):
                look(number)
        world.hub.dispatch()
        world.hold_replays = False
        while world.replays:
            world.answer_replay()
        for number, (client, stream) in enumerate(streams):
            client.room = True
            stream.room()
            world.settle()
            look(number)
        for watches in expected:
            for watch in watches.values():
                self.assertTrue(watch.ended or not watch.wanted(), watch.request)
        self.assertEqual(world.hub.behind, 0)
        for _, stream in streams:
            stream.close()
        self.assertEqual(world.clock.getDelayedCalls(), [])
