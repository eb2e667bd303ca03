"""The tree of the v2 API, set by set: a file that lives for ever is set in a short way, which nobody can tell."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.storage.treecase import NOON_NS, DirectoryCase, Sink
from twistedkv.storage.directory import Directory
from twistedkv.v2errors import V2Code, V2Error
from twistedkv.v2events import PERMANENT, Event


class Teller(Sink):
    """Remembers all that it is told, and what the tree looks like by then."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = Directory(self)
        self.heard: list[object] = []

    def notify(self, event: Event) -> None:
        super().notify(event)
        self._hear("notify", event)

    def add(self, event: Event) -> None:
        super().add(event)
        self._hear("add", event)

    def _hear(self, how: str, event: Event) -> None:
        tree = self.tree
        node = tree.node(event.node.key)
        there = node and (node.value, node.created, node.modified, node.expires_ns)
        counts = dict(tree.counters.counts)
        self.heard.append((how, everything(event), there, tree.index, counts, set(tree.changed)))

    def ask(self, kind: str, *arguments: Any, **options: Any) -> object:
        """What comes of a request."""
        try:
            event = getattr(self.tree, kind)(*arguments, **options)
        except V2Error as error:
            return error.code, error.cause, error.index
        return everything(event) if isinstance(event, Event) else event


def everything(event: Event) -> object:
    """All that an event says."""
    return event.action, event.node, event.previous, event.etcd_index, event.refresh, event.encoded


class SetInPlaceTests(DirectoryCase):
    """A set never takes the short way if its path has to be cleaned of a slash first."""

    def setUp(self) -> None:
        super().setUp()
        self.short, self.general = Teller(), Teller()

    def both(self, kind: str, path: str, *arguments: Any, **options: Any) -> object:
        """What comes of a request to both trees, and of all before it; the other one's path has a slash at its end."""
        found = self.short.ask(kind, path, *arguments, **options)
        self.assertEqual(found, self.general.ask(kind, path + "/", *arguments, **options), (kind, path))
        self.assert_same()
        return found

    def assert_same(self) -> None:
        """Both trees have, tell and count the same, and have the same to be kept."""
        short, general = self.short, self.general
        self.assertEqual(self.dump(short.tree), self.dump(general.tree))
        self.assertEqual(
            (short.told, short.heard, short.tree.index, short.tree.changed, short.tree.first_end_ns),
            (general.told, general.heard, general.tree.index, general.tree.changed, general.tree.first_end_ns),
        )
        self.assertEqual(short.tree.counters.counts, general.tree.counters.counts)

    def test_each_kind_of_set(self) -> None:
        """Of files with and without an end, by files, directories and refreshes; of hidden keys and read-only ones."""
        for path in ("/1/foo", "/1/_hid", "/1/_d/_h", "/1/d/e", "/1/\udcff", "/0/x", "/2/y", "/1", "/0", "/"):
            for is_dir, value, ends_ns, refresh in (
                (False, "a", PERMANENT, False),
                (False, "b", PERMANENT, False),
                (False, "b", PERMANENT, False),
                (False, "", NOON_NS, False),
                (False, "c", PERMANENT, False),
                (False, "d", -5, False),
                (False, "e", NOON_NS, True),
                (False, "f", PERMANENT, True),
                (False, "g", PERMANENT, False),
                (True, "h", PERMANENT, False),
                (False, "i", PERMANENT, False),
            ):
                self.both("set", path, is_dir, value, ends_ns, refresh=refresh)
                self.short.tree.changed.clear()
                self.general.tree.changed.clear()
        counts = self.short.tree.counters.counts
        self.assertEqual((counts["setsSuccess"], counts["setsFail"]), (7 * 10, 7 + 3 * 11))

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(("/1/a", "/1/a", "/1/b", "/1/d/a", "/1/d", "/1/_h", "/1/a/x", "/1", "/0", "/2")),
                st.sampled_from(("", "x", "\udcff", None, "delete", "expire")),
                st.sampled_from((0, 0, 0, 0, NOON_NS, NOON_NS + 1, 5, -1)),
                st.sampled_from((False, False, False, True)),
            ),
            min_size=5,
            max_size=25,
        )
    )
    @settings(max_examples=50, deadline=None)
    def test_any_sets(self, requests: list[tuple[str, str | None, int, bool]]) -> None:
        """Whatever was set, removed and has expired before."""
        self.short, self.general = Teller(), Teller()
        for path, value, ends_ns, refresh in requests:
            if value == "delete":
                self.both("delete", path, True, refresh)
            elif value == "expire":
                self.assertEqual(*(teller.tree.expire(NOON_NS) for teller in (self.short, self.general)))
            else:
                self.both("set", path, value is None, value or "", ends_ns, refresh=refresh)

    def test_what_was_told_stays_as_it_was(self) -> None:
        """An event is not changed by the next set of its key."""
        events = [self.tree.set("/1/foo", False, value) for value in "abc"]
        self.assertEqual([event.node.value for event in events], ["a", "b", "c"])
        self.assertEqual([event.previous and event.previous.value for event in events], [None, "a", "b"])
        self.assertEqual([event.node.modified for event in events], [1, 2, 3])

    def test_a_file_that_was_removed_or_became_a_directory(self) -> None:
        """It is not replaced any more."""
        self.tree.set("/1/foo", False, "a")
        self.tree.delete("/1/foo")
        self.assertTrue(self.tree.set("/1/foo", False, "b").is_created)
        self.tree.set("/1/foo", True, "")
        self.assert_refused(V2Code.NOT_FILE, "/1/foo", self.tree.set, "/1/foo", False, "c")
        self.tree.delete("/1/foo", is_dir=True)
        self.assertTrue(self.tree.set("/1/foo", False, "d").is_created)
