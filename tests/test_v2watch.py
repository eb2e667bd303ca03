"""Long polls on the v2 store: what a watcher is told, of what is to come and of what has been."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from twisted.trial.unittest import SynchronousTestCase

from tests.storage.treecase import NOON_NS, copied
from twistedkv.storage.directory import Directory
from twistedkv.v2errors import V2Code, V2Error
from twistedkv.v2events import Event
from twistedkv.v2watch import CAPACITY, History, V2Hub, Watcher


class Ear:
    """One who is told; ``then`` is what it does about it."""

    def __init__(self, then: Callable[[], object] | None = None) -> None:
        self.told: list[str] = []
        self.is_lost = False
        self.then = then

    def happened(self, event: Event) -> None:
        self.told.append(f"{event.action} {event.node.key} {event.index}")
        if self.then is not None:
            self.then()

    def lost(self) -> None:
        self.is_lost = True


class WatchCase(SynchronousTestCase):
    """A store and those who watch it."""

    def setUp(self) -> None:
        self.hub = V2Hub()
        self.tree = Directory(self.hub)

    def ear(self, path: str, recursive: bool = False, stream: bool = False, since: int = 0) -> Ear:
        """A new watcher."""
        ear = Ear()
        self.hub.watch(path, recursive, stream, since, self.tree.index, ear)
        return ear

    def watcher(self, path: str, ear: Ear, stream: bool = True) -> Watcher:
        """A new watcher that waits."""
        watcher = self.hub.watch(path, True, stream, 0, self.tree.index, ear)
        assert watcher is not None
        return watcher

    def set(self, *paths: str) -> None:
        for path in paths:
            self.tree.set(path, False, "x")


class LiveTests(WatchCase):
    """What is to come."""

    def test_told_once(self) -> None:
        """A watcher is told of the next change of its key, and is gone then."""
        ear = self.ear("/1/foo")
        self.assertEqual(self.hub.count, 1)
        self.set("/1/bar", "/1/foo", "/1/foo")
        self.assertEqual((ear.told, self.hub.count), (["set /1/foo 2"], 0))

    def test_stream(self) -> None:
        """A stream is told of every change."""
        ear = self.ear("/1/foo", stream=True)
        self.set("/1/foo", "/1/bar")
        self.tree.update("/1/foo", "y")
        self.tree.compare_and_swap("/1/foo", "y", 0, "z")
        self.assertEqual(ear.told, ["set /1/foo 1", "update /1/foo 3", "compareAndSwap /1/foo 4"])
        self.assertEqual(self.hub.count, 1)

    def test_recursive(self) -> None:
        """A recursive watcher hears of all keys below, others of the directory's own changes only."""
        below, itself, root = self.ear("/1/dir", True, True), self.ear("/1/dir", False, True), self.ear("/", True, True)
        self.set("/1/dir/a", "/1/dir/b/c", "/1/dirx")
        self.tree.create("/1/dir", False, "", unique=True)
        self.tree.update("/1/dir", "", NOON_NS)
        self.assertEqual(
            below.told,
            ["set /1/dir/a 1", "set /1/dir/b/c 2", "create /1/dir/00000000000000000004 4", "update /1/dir 5"],
        )
        self.assertEqual(itself.told, ["update /1/dir 5"])
        self.assertEqual(len(root.told), 5)

    def test_hidden(self) -> None:
        """Keys below a segment with an underscore are hidden from watchers above it, and from no one else."""
        above, root = self.ear("/1/dir", True, True), self.ear("/", True, True)
        at, inside = self.ear("/1/dir/_hid", True, True), self.ear("/1/dir/_hid/a", False, True)
        self.set("/1/dir/_hid/a", "/_top", "/1/dir/_hid/b")
        self.assertEqual((above.told, root.told), ([], []))
        self.assertEqual(at.told, ["set /1/dir/_hid/a 1", "set /1/dir/_hid/b 3"])
        self.assertEqual(inside.told, ["set /1/dir/_hid/a 1"])
        self.set("/1/dir/under_score")
        self.assertEqual(above.told, ["set /1/dir/under_score 4"])

    def test_refresh_is_told_to_nobody(self) -> None:
        """Whoever watches a key is not woken when only its time to live is moved."""
        self.set("/1/foo")
        ear = self.ear("/1/foo", True, True)
        self.tree.set("/1/foo", False, "", NOON_NS, refresh=True)
        self.tree.update("/1/foo", "", NOON_NS, refresh=True)
        self.tree.compare_and_swap("/1/foo", "x", 0, "", NOON_NS, refresh=True)
        self.assertEqual((ear.told, self.hub.history.last), ([], 4))

    def test_removal_of_a_directory(self) -> None:
        """A directory that goes wakes the watchers of all nodes in it, also hidden ones; not of keys that are none."""
        self.set("/1/dir/a/b", "/1/dir/_hid")
        ears = {path: self.ear(path) for path in ("/1", "/1/dir", "/1/dir/a", "/1/dir/a/b", "/1/dir/_hid", "/1/dir/no")}
        self.tree.delete("/1/dir", recursive=True)
        self.assertEqual([path for path, ear in ears.items() if not ear.told], ["/1", "/1/dir/no"])
        self.assertEqual(ears["/1/dir/a/b"].told, ["delete /1/dir 3"])

    def test_stream_is_told_twice_of_its_own_end(self) -> None:
        """As in etcd a stream hears twice of the removal of the very node that it watches, and once of one above it."""
        for remove in (
            lambda: self.tree.delete("/1/dir/foo"),
            lambda: self.tree.compare_and_delete("/1/dir/foo", "x", 0),
            lambda: self.tree.expire(NOON_NS),
        ):
            self.tree.set("/1/dir/foo", False, "x", NOON_NS)
            itself, above = self.ear("/1/dir/foo", False, True), self.ear("/1/dir", True, True)
            remove()
            self.assertEqual((len(itself.told), len(above.told)), (2, 1))
            self.assertEqual(itself.told[0], itself.told[1])
        self.tree.set("/1/dir/foo", False, "x")
        poll = self.ear("/1/dir/foo")
        self.tree.delete("/1/dir/foo")
        self.assertEqual(len(poll.told), 1)

    def test_expiry(self) -> None:
        """A key that comes to its end is told like one that is deleted."""
        self.tree.set("/1/dir", True, "", NOON_NS)
        self.set("/1/dir/a")
        ear = self.ear("/1/dir/a")
        self.tree.expire(NOON_NS)
        self.assertEqual(ear.told, ["expire /1/dir 3"])

    def test_future(self) -> None:
        """Who waits for an index that is to come hears nothing of what is before it."""
        ear = self.ear("/1/foo", since=3)
        never = self.ear("/1/foo", since=2**64 - 1)
        self.set("/1/foo", "/1/foo")
        self.assertEqual(ear.told, [])
        self.set("/1/foo")
        self.assertEqual((ear.told, never.told), (["set /1/foo 3"], []))

    def test_in_the_order_in_which_they_came(self) -> None:
        """Watchers of one path are told in the order in which they came, those of the root first."""
        order: list[int] = []
        for number, path in enumerate(("/1/foo", "/1/foo", "/1", "/")):
            ear = Ear(lambda number=number: order.append(number))  # type: ignore[misc]
            self.hub.watch(path, True, False, 0, self.tree.index, ear)
        self.set("/1/foo")
        self.assertEqual(order, [3, 2, 0, 1])

    def test_gone(self) -> None:
        """Who went away hears nothing more, and to go twice, or after it was told, is no error."""
        left, right = Ear(), Ear()
        first, second = self.watcher("/1/foo", left), self.watcher("/1/foo", right, stream=False)
        self.hub.remove(first)
        self.hub.remove(first)
        self.assertEqual(self.hub.count, 1)
        self.set("/1/foo")
        self.hub.remove(second)
        self.hub.remove(first)
        self.assertEqual((left.told, right.told, self.hub.count), ([], ["set /1/foo 1"], 0))

    def test_gone_while_others_are_told(self) -> None:
        """Who is taken away by another one that was told before it hears nothing more."""
        second = Ear()
        self.watcher("/1/foo", Ear(lambda: self.hub.remove(waiting)))
        waiting = self.watcher("/1/foo", second)
        self.set("/1/foo")
        self.assertEqual((second.told, self.hub.count), ([], 1))

    def test_comes_while_others_are_told(self) -> None:
        """Who polls again the moment it was told waits for the next change."""
        again = Ear()
        self.watcher("/1/foo", Ear(lambda: self.watcher("/1/foo", again, stream=False)), stream=False)
        self.set("/1/foo")
        self.assertEqual((again.told, self.hub.count), ([], 1))
        self.set("/1/foo")
        self.assertEqual((again.told, self.hub.count), (["set /1/foo 2"], 0))

    def test_nothing_is_left_of_watchers(self) -> None:
        """After watchers came and went nothing of them is kept."""
        for number in range(10):
            self.hub.remove(self.watcher(f"/1/{number}", Ear()))
        self.ear("/1/foo")
        self.set("/1/foo")
        self.assertEqual((self.hub.count, self.hub._watchers, self.hub.requests), (0, {}, 11))

    def test_ten_thousand(self) -> None:
        """Ten thousand watchers cost a change elsewhere nothing, and one change tells all of them."""
        ears = [self.ear("/1/foo") for _ in range(10_000)]
        start = perf_counter()
        self.set(*["/1/bar"] * 100)
        self.assertLess(perf_counter() - start, 0.2)  # looking at each of them would take seconds
        self.set("/1/foo")
        self.assertEqual({tuple(ear.told) for ear in ears}, {("set /1/foo 101",)})
        self.assertEqual(self.hub.count, 0)

    def test_deep(self) -> None:
        """Watchers are found above, at and below a path of 8,000 segments."""
        deep = "/1" + "/d" * 8_000
        above, at = self.ear("/1/d/d", True), self.ear(deep)
        self.set(deep)
        self.assertEqual((above.told, at.told), ([f"set {deep} 1"], [f"set {deep} 1"]))
        at = self.ear(deep)
        self.tree.delete("/1/d", recursive=True)
        self.assertEqual(at.told, ["delete /1/d 2"])


class PastTests(WatchCase):
    """What has been."""

    def test_first_that_is_wanted(self) -> None:
        """Who asks for the past gets the first change of its key since then, at once, and does not wait."""
        self.set("/1/foo", "/1/bar", "/1/foo", "/1/foo")
        for since, index in ((1, 1), (2, 3), (3, 3), (4, 4)):
            self.assertEqual(self.ear("/1/foo", since=since).told, [f"set /1/foo {index}"])
        self.assertIsNone(self.hub.watch("/1/foo", False, False, 1, self.tree.index, Ear()))
        self.assertEqual((self.hub.count, self.hub.requests), (0, 5))

    def test_waits_if_there_is_none_yet(self) -> None:
        """If nothing of the past is wanted the future is awaited."""
        self.set("/1/foo", "/1/bar")
        ear = self.ear("/1/foo", since=2)
        self.assertEqual((ear.told, self.hub.count), ([], 1))
        self.set("/1/foo")
        self.assertEqual(ear.told, ["set /1/foo 3"])

    def test_stream_gets_all_since_then(self) -> None:
        """A stream from the past gets everything since then, each change once, and goes on with what comes."""
        self.set("/1/dir/a", "/1/dir/b", "/1/c", "/1/dir/a")
        ear = self.ear("/1/dir", True, True, since=2)
        self.assertEqual(ear.told, ["set /1/dir/b 2", "set /1/dir/a 4"])
        self.set("/1/dir/b")
        self.assertEqual(ear.told[2:], ["set /1/dir/b 5"])

    def test_recursive(self) -> None:
        """Changes below count for recursive watchers only; a name that only begins alike is not below."""
        self.set("/1/dirx", "/1/dir/a")
        self.assertEqual(self.ear("/1/dir", since=1).told, [])
        self.assertEqual(self.ear("/1/dir", True, since=1).told, ["set /1/dir/a 2"])
        self.assertEqual(self.ear("/", True, since=1).told, ["set /1/dirx 1"])

    def test_removed_directories(self) -> None:
        """The removal of a directory above is of the past of a key in it; that of a file, or a change, is not."""
        self.set("/1/dir/foo")
        self.tree.update("/1/dir", "", NOON_NS)
        self.tree.delete("/1/dir", recursive=True)
        self.set("/1/file")
        self.tree.delete("/1/file")
        self.tree.set("/1/file", False, "", NOON_NS)
        self.tree.expire(NOON_NS)
        self.tree.set("/1/dir", True, "", NOON_NS)
        self.tree.expire(NOON_NS)
        self.assertEqual(self.ear("/1/dir/foo", since=2).told, ["delete /1/dir 3"])
        self.assertEqual(self.ear("/1/dir/foo", since=4).told, ["expire /1/dir 9"])
        self.assertEqual(self.ear("/1/file/x", since=1).told, [])

    def test_more_than_while_waiting(self) -> None:
        """As in etcd hidden keys are shown of the past, and a directory counts for all paths that begin like it."""
        self.set("/1/dir/_hid", "/1/foo/a")
        self.tree.delete("/1/foo", recursive=True)
        self.assertEqual(self.ear("/1/dir", True, since=1).told, ["set /1/dir/_hid 1"])
        self.assertEqual(self.ear("/1/foobar", since=1).told, ["delete /1/foo 3"])

    def test_refresh_is_no_past(self) -> None:
        """Refreshes take a place in the history and are shown to nobody."""
        self.tree.set("/1/foo", False, "x", NOON_NS)
        self.tree.update("/1/foo", "", NOON_NS, refresh=True)
        self.set("/1/foo")
        self.assertEqual(self.ear("/1/foo", since=2).told, ["set /1/foo 3"])

    def test_forgotten(self) -> None:
        """The last thousand changes are known; who asks for one before them is refused at the index of the store."""
        self.set(*["/1/foo"] * (CAPACITY + 5))
        self.assertEqual((self.hub.history.first, self.hub.history.last), (6, CAPACITY + 5))
        self.assertEqual(self.ear("/1/foo", since=6).told, ["set /1/foo 6"])
        error = self.assertRaises(V2Error, self.ear, "/1/foo", since=5)
        self.assertEqual((error.code, error.index), (V2Code.EVENT_INDEX_CLEARED, CAPACITY + 5))
        self.assertEqual(error.cause, "the requested history has been cleared [6/5]")
        self.assertEqual(self.hub.count, 0)


class HistoryTests(SynchronousTestCase):
    """The last changes."""

    def test_empty(self) -> None:
        """Of nothing there is no first, no last, and nothing to be found."""
        history = History()
        self.assertEqual((history.first, history.last, history.fresh), (0, 0, 0))
        self.assertIsNone(history.scan("/1/foo", True, 1))

    def test_begins_with_what_was_kept(self) -> None:
        """A history that was kept goes on; the last of it count if it is too long, and what is fresh is counted."""
        hub = V2Hub()
        tree = Directory(hub)
        for _ in range(CAPACITY + 1):
            tree.set("/1/foo", False, "x")
        self.assertEqual(hub.history.fresh, CAPACITY)
        again = History(hub.history.events)
        self.assertEqual((again.first, again.last, again.fresh), (2, CAPACITY + 1, CAPACITY))
        again.fresh = 0
        other = Directory(V2Hub(again))
        other.index = tree.index
        other.set("/1/foo", False, "x")
        self.assertEqual((again.first, again.last, again.fresh), (3, CAPACITY + 2, 1))


class RestoredTests(WatchCase):
    """A member that fell behind gets the store of another one."""

    def ahead(self, *paths: str) -> None:
        """The store becomes one in which these were set meanwhile."""
        hub = V2Hub(History(self.hub.history.events))
        tree = copied(self.tree)
        tree.sink = hub
        for path in paths:
            tree.set(path, False, "x")
        self.tree.restore(tree)
        self.hub.restored(hub.history)

    def test_what_was_skipped_is_told(self) -> None:
        """Polls get the first change that they missed, streams all of them, and both nothing a second time."""
        stream, poll, other = self.ear("/1/foo", False, True), self.ear("/1/foo"), self.ear("/1/other")
        self.set("/1/bar")
        live = self.ear("/1", True, True, since=1)
        self.ahead("/1/foo", "/1/bar", "/1/foo")
        self.assertEqual((poll.told, other.told), (["set /1/foo 2"], []))
        self.assertEqual(stream.told, ["set /1/foo 2", "set /1/foo 4"])
        self.assertEqual(live.told, ["set /1/bar 1", "set /1/foo 2", "set /1/bar 3", "set /1/foo 4"])
        self.set("/1/foo")
        self.assertEqual((stream.told[2:], live.told[4:], self.hub.count), (["set /1/foo 5"], ["set /1/foo 5"], 3))

    def test_nothing_was_missed(self) -> None:
        """Who has waited for long loses nothing only because its beginning is forgotten by now."""
        ear, stream = self.ear("/1/foo"), self.ear("/1/bar", False, True)
        self.set(*["/1/bar"] * (CAPACITY + 10))
        self.ahead("/1/foo")
        self.assertEqual((ear.told, ear.is_lost, stream.is_lost), ([f"set /1/foo {CAPACITY + 11}"], False, False))
        self.assertEqual(len(stream.told), CAPACITY + 10)

    def test_too_much_was_missed(self) -> None:
        """Who may have missed what nobody knows any more is told so, and hears nothing more."""
        ear, future = self.ear("/1/foo", False, True), self.ear("/1/foo", since=CAPACITY + 3)
        self.ahead(*["/1/bar"] * (CAPACITY + 1))
        self.assertEqual((ear.is_lost, ear.told, future.is_lost), (True, [], False))
        self.set("/1/foo", "/1/foo")
        self.assertEqual((ear.told, future.told, self.hub.count), ([], [f"set /1/foo {CAPACITY + 3}"], 0))

    def test_gone_while_they_are_told(self) -> None:
        """Who goes away because of what it is told, or what another one is told, hears nothing more."""

        def leave() -> None:
            for watcher in (waiting, neighbour, elsewhere):
                self.hub.remove(watcher)

        first = Ear(leave)
        others = [Ear(), Ear()]
        waiting = self.watcher("/1/foo", first)
        neighbour, elsewhere = self.watcher("/1/foo", others[0]), self.watcher("/1", others[1])
        self.ahead("/1/foo", "/1/foo")
        self.assertEqual((len(first.told), others[0].told, others[1].told, self.hub.count), (1, [], [], 0))
