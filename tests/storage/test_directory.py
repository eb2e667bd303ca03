"""The tree of the v2 API: what each request does, and what is refused and how."""

from __future__ import annotations

from collections.abc import Callable

from tests.storage.treecase import NOON_NS, SECOND_NS, DirectoryCase
from twistedkv.storage.directory import CLUSTER, KEYS
from twistedkv.v2errors import V2Code, V2Error
from twistedkv.v2events import PERMANENT, Action, Event, NodeView


class NewTreeTests(DirectoryCase):
    """Before the first request."""

    def test_holds_the_two_namespaces(self) -> None:
        """A new tree has the directories of the members and of the keys, and nothing has happened yet."""
        self.assertEqual(self.paths(), ["/", CLUSTER, KEYS])
        self.assertEqual((self.tree.index, self.tree.first_end_ns, self.tree.changed), (0, None, set()))
        self.assertEqual(self.tree.root.path, "/")
        self.assertEqual(self.tree.get(KEYS).node, NodeView(KEYS, None, True, PERMANENT, (), 0, 0))

    def test_node_is_found_by_its_path(self) -> None:
        """A node can be looked up, one that is not there is none."""
        self.tree.set("/1/a", False, "x")
        found = self.tree.node("/1/a")
        assert found is not None
        self.assertEqual((found.value, found.is_hidden), ("x", False))
        self.assertIsNone(self.tree.node("/1/b"))


class SetTests(DirectoryCase):
    """PUT without a condition."""

    def test_makes_a_file(self) -> None:
        """A set of a new key makes it, and says that there was none before."""
        event = self.tree.set("/1/foo", False, "bar")
        self.assertEqual(event.node, NodeView("/1/foo", "bar", False, PERMANENT, (), 1, 1))
        self.assertEqual((event.action, event.previous, event.is_created), (Action.SET, None, True))
        self.assertEqual((event.etcd_index, event.index, event.refresh, event.encoded), (1, 1, False, None))
        self.assertEqual(self.sink.told, ["notify set /1/foo 1"])

    def test_replaces_a_file(self) -> None:
        """A set of a key that exists is a new key: its created index is new, and what was before is told."""
        self.tree.set("/1/foo", False, "bar", NOON_NS)
        event = self.tree.set("/1/foo", False, "baz")
        self.assertEqual(event.node, NodeView("/1/foo", "baz", False, PERMANENT, (), 2, 2))
        self.assertEqual(event.previous, NodeView("/1/foo", "bar", False, NOON_NS, (), 1, 1))
        self.assertFalse(event.is_created)
        self.assertIsNone(self.tree.first_end_ns)

    def test_makes_a_directory(self) -> None:
        """A set with dir=true makes an empty directory and has no use for the value."""
        event = self.tree.set("/1/dir", True, "ignored")
        self.assertEqual(event.node, NodeView("/1/dir", None, True, PERMANENT, (), 1, 1))
        self.assertEqual(self.tree.get("/1/dir").node.nodes, ())

    def test_replaces_a_file_by_a_directory(self) -> None:
        """A set with dir=true over a file puts a directory in its place, into which keys can go."""
        self.tree.set("/1/foo", False, "bar", NOON_NS)
        event = self.tree.set("/1/foo", True, "")
        self.assertEqual(
            (event.node.is_dir, event.node.value, event.previous and event.previous.value), (True, None, "bar")
        )
        self.tree.set("/1/foo/sub", False, "x")
        self.assertEqual(self.value("/1/foo/sub"), "x")

    def test_makes_the_directories_above(self) -> None:
        """Directories that are missing are made with the same index, without an end and without an event."""
        self.tree.set("/1/a", True, "")
        event = self.tree.set("/1/a/b/c/d", False, "x", NOON_NS)
        self.assertEqual(event.index, 2)
        self.assertEqual(
            self.dump()[3:],
            [
                ("/1/a", None, 1, 1, PERMANENT),
                ("/1/a/b", None, 2, 2, PERMANENT),
                ("/1/a/b/c", None, 2, 2, PERMANENT),
                ("/1/a/b/c/d", "x", 2, 2, NOON_NS),
            ],
        )
        self.assertEqual(self.sink.told, ["notify set /1/a 1", "notify set /1/a/b/c/d 2"])
        self.assertEqual(self.tree.changed, {"/1/a", "/1/a/b", "/1/a/b/c", "/1/a/b/c/d"})

    def test_directory_is_not_replaced(self) -> None:
        """A directory is replaced neither by a file nor by a directory, not even when it is empty."""
        self.tree.set("/1/dir", True, "")
        self.assert_refused(V2Code.NOT_FILE, "/1/dir", self.tree.set, "/1/dir", False, "x")
        self.assert_refused(V2Code.NOT_FILE, "/1/dir", self.tree.set, "/1/dir", True, "")
        self.assert_refused(V2Code.NOT_FILE, "/1/dir", self.tree.set, "/1/dir", True, "", NOON_NS, refresh=True)

    def test_nothing_is_below_a_file(self) -> None:
        """A key below a file is refused with the file as the cause, however deep it is to be."""
        self.tree.set("/1/dir/file", False, "x")
        for path in ("/1/dir/file/sub", "/1/dir/file/sub/deeper"):
            self.assert_refused(V2Code.NOT_DIR, "/1/dir/file", self.tree.set, path, False, "x")
            self.assert_refused(V2Code.NOT_DIR, "/1/dir/file", self.tree.set, path, False, "", NOON_NS, refresh=True)

    def test_root_is_read_only(self) -> None:
        """The root, the members' and the keys' directory cannot be written."""
        for path in ("/", "", CLUSTER, KEYS, "/1/", "/1/x/.."):
            self.assert_refused(V2Code.ROOT_READ_ONLY, "/", self.tree.set, path, False, "x")
            self.assert_refused(V2Code.ROOT_READ_ONLY, "/", self.tree.set, path, True, "", refresh=True)

    def test_refresh_keeps_the_value(self) -> None:
        """A set with refresh gives a new end to the value there is, and no watcher is told."""
        self.tree.set("/1/foo", False, "bar", NOON_NS)
        event = self.tree.set("/1/foo", False, "", NOON_NS + SECOND_NS, refresh=True)
        self.assertEqual(event.node, NodeView("/1/foo", "bar", False, NOON_NS + SECOND_NS, (), 2, 2))
        self.assertEqual((event.refresh, self.tree.first_end_ns), (True, NOON_NS + SECOND_NS))
        self.assertEqual(self.sink.told, ["notify set /1/foo 1", "add set /1/foo 2"])

    def test_refresh_of_nothing(self) -> None:
        """There must be something to refresh."""
        self.assert_refused(V2Code.KEY_NOT_FOUND, "/1/no", self.tree.set, "/1/no/foo", False, "", NOON_NS, refresh=True)

    def test_paths_are_cleaned(self) -> None:
        """Slashes too many, and segments of dots, mean what they mean in a file system; the root is above the root."""
        for path in ("1/foo", "//1//foo/", "/1/./foo", "/1/x/../foo", "/../../1/foo/.", "/1/foo/x/y/../.."):
            self.assertEqual(self.tree.set(path, False, path).node.key, "/1/foo")
            self.assertEqual(self.value(path), path)
        self.assertEqual(self.paths(), ["/", CLUSTER, KEYS, "/1/foo"])

    def test_names_may_be_anything(self) -> None:
        """Names with dots, a NUL or bytes that are no UTF-8, and the empty value, are kept as they are."""
        for name in (".hid", "..a", "a\0b", "\udcff\udc80", "ünïcode", " "):
            self.assertEqual(self.tree.set("/1/" + name, False, "").node.key, "/1/" + name)
            self.assertEqual(self.value("/1/" + name), "")

    def test_end_before_2000_is_none(self) -> None:
        """A node that is made with an end before the year 2000 is permanent, since such ends come from an overflow."""
        for ends_ns in (-1, 1, 946_684_800_000_000_000 - 1):
            self.assertEqual(self.tree.set("/1/foo", False, "", ends_ns).node.expires_ns, PERMANENT)
        self.assertIsNone(self.tree.first_end_ns)
        self.tree.set("/1/foo", False, "", 946_684_800_000_000_000)
        self.assertEqual(self.tree.first_end_ns, 946_684_800_000_000_000)


class CreateTests(DirectoryCase):
    """PUT with prevExist=false, and POST."""

    def test_makes_a_node(self) -> None:
        """A create makes a file or a directory, and all directories above it."""
        event = self.tree.create("/1/a/foo", False, "bar", NOON_NS)
        self.assertEqual((event.action, event.previous, event.is_created), (Action.CREATE, None, True))
        self.assertEqual(event.node, NodeView("/1/a/foo", "bar", False, NOON_NS, (), 1, 1))
        self.assertTrue(self.tree.create("/1/b", True, "").node.is_dir)
        self.assertEqual(self.sink.told, ["notify create /1/a/foo 1", "notify create /1/b 2"])

    def test_does_not_replace(self) -> None:
        """What is there, be it a file or a directory, is not made again."""
        self.tree.set("/1/dir/foo", False, "bar")
        for path in ("/1/dir", "/1/dir/foo"):
            self.assert_refused(V2Code.NODE_EXISTS, path, self.tree.create, path, False, "x")
            self.assert_refused(V2Code.NODE_EXISTS, path, self.tree.create, path, True, "")

    def test_not_below_a_file(self) -> None:
        """Nothing is made below a file."""
        self.tree.set("/1/foo", False, "bar")
        self.assert_refused(V2Code.NOT_DIR, "/1/foo", self.tree.create, "/1/foo/a/b", False, "x")
        self.assert_refused(V2Code.NOT_DIR, "/1/foo", self.tree.create, "/1/foo", False, "x", unique=True)

    def test_root_is_read_only(self) -> None:
        """The root cannot be created."""
        for path in ("/", CLUSTER, KEYS):
            self.assert_refused(V2Code.ROOT_READ_ONLY, "/", self.tree.create, path, True, "")

    def test_unique_names_are_in_order(self) -> None:
        """A POST makes a key whose name is the index of the change with 20 digits, so that names sort by age."""
        keys = [self.tree.create("/1/queue", False, str(number), unique=True).node.key for number in range(11)]
        self.assertEqual(keys[0], "/1/queue/00000000000000000001")
        self.assertEqual(self.keys("/1/queue"), keys)
        self.assertEqual(self.tree.create(KEYS, True, "", unique=True).node.key, "/1/00000000000000000012")
        self.assertEqual(self.tree.create("/", False, "", unique=True).node.key, "/00000000000000000013")

    def test_unique_name_that_is_taken(self) -> None:
        """A POST never replaces a key that somebody has given that very name."""
        self.tree.set("/1/queue/00000000000000000002", False, "x")
        self.assert_refused(
            V2Code.NODE_EXISTS,
            "/1/queue/00000000000000000002",
            self.tree.create,
            "/1/queue",
            False,
            "y",
            unique=True,
        )


class UpdateTests(DirectoryCase):
    """PUT with prevExist=true."""

    def test_changes_value_and_end(self) -> None:
        """An update keeps the created index, and an update without a time to live takes the end away."""
        self.tree.set("/1/foo", False, "a")
        event = self.tree.update("/1/foo", "b", NOON_NS)
        self.assertEqual((event.action, event.is_created), (Action.UPDATE, False))
        self.assertEqual(event.node, NodeView("/1/foo", "b", False, NOON_NS, (), 2, 1))
        self.assertEqual(event.previous, NodeView("/1/foo", "a", False, PERMANENT, (), 1, 1))
        self.assertEqual(self.tree.update("/1/foo", "").node, NodeView("/1/foo", "", False, PERMANENT, (), 3, 1))
        self.assertIsNone(self.tree.first_end_ns)

    def test_refresh(self) -> None:
        """A refresh moves the end and keeps the value; it has an index, and is told to no watcher."""
        self.tree.set("/1/foo", False, "a", NOON_NS)
        event = self.tree.update("/1/foo", "", NOON_NS + 1, refresh=True)
        self.assertEqual(event.node, NodeView("/1/foo", "a", False, NOON_NS + 1, (), 2, 1))
        self.assertTrue(event.refresh)
        self.assertEqual(self.sink.told[1:], ["add update /1/foo 2"])
        self.assertEqual(self.tree.first_end_ns, NOON_NS + 1)

    def test_time_to_live_of_a_directory(self) -> None:
        """A directory's end can be changed; the event has the new index, while the directory keeps its own."""
        self.tree.set("/1/dir/foo", False, "a")
        event = self.tree.update("/1/dir", "", NOON_NS)
        self.assertEqual(event.node, NodeView("/1/dir", None, True, NOON_NS, (), 2, 1))
        self.assertEqual(event.previous, NodeView("/1/dir", None, True, PERMANENT, (), 1, 1))
        node = self.tree.get("/1/dir").node
        self.assertEqual((node.modified, node.created, node.expires_ns), (1, 1, NOON_NS))
        self.assertTrue(self.tree.update("/1/dir", "", NOON_NS + 1, refresh=True).refresh)
        self.assertEqual(self.tree.first_end_ns, NOON_NS + 1)

    def test_directory_gets_no_value(self) -> None:
        """A directory has no value."""
        self.tree.set("/1/dir", True, "")
        self.assert_refused(V2Code.NOT_FILE, "/1/dir", self.tree.update, "/1/dir", "x")

    def test_only_what_is_there(self) -> None:
        """An update makes nothing: the first segment that is missing, or the file in the way, is the cause."""
        self.tree.set("/1/foo", False, "a")
        self.assert_refused(V2Code.KEY_NOT_FOUND, "/1/no", self.tree.update, "/1/no", "x")
        self.assert_refused(V2Code.KEY_NOT_FOUND, "/1/no", self.tree.update, "/1/no/deep/er", "x")
        self.assert_refused(V2Code.NOT_DIR, "/1/foo", self.tree.update, "/1/foo/sub/x", "x")

    def test_root_is_read_only(self) -> None:
        """The root gets no end."""
        for path in ("/", CLUSTER, KEYS):
            self.assert_refused(V2Code.ROOT_READ_ONLY, "/", self.tree.update, path, "", NOON_NS)

    def test_end_before_2000_counts(self) -> None:
        """An update does not mistake an end in the past for none: the node goes next time."""
        self.tree.set("/1/foo", False, "a")
        self.assertEqual(self.tree.update("/1/foo", "a", -5).node.expires_ns, -5)
        self.assertEqual((self.tree.first_end_ns, self.tree.expire(NOON_NS)), (-5, 1))


class CompareTests(DirectoryCase):
    """PUT and DELETE with prevValue and prevIndex."""

    def setUp(self) -> None:
        super().setUp()
        self.tree.set("/1/dir", True, "")
        self.tree.set("/1/foo", False, "a", NOON_NS)

    def test_swap(self) -> None:
        """A key with the value, the index, or both as expected is changed, and keeps its created index."""
        event = self.tree.compare_and_swap("/1/foo", "a", 0, "b", NOON_NS + 1)
        self.assertEqual(event.action, Action.COMPARE_AND_SWAP)
        self.assertEqual(event.node, NodeView("/1/foo", "b", False, NOON_NS + 1, (), 3, 2))
        self.assertEqual(event.previous, NodeView("/1/foo", "a", False, NOON_NS, (), 2, 2))
        self.assertEqual(self.tree.compare_and_swap("/1/foo", "", 3, "c").node[1:6], ("c", False, PERMANENT, (), 4))
        self.assertEqual(self.tree.compare_and_swap("/1/foo", "c", 4, "d").node.value, "d")
        self.assertEqual(self.sink.told[-1], "notify compareAndSwap /1/foo 5")

    def test_swap_with_refresh(self) -> None:
        """A compare-and-swap with refresh moves the end alone, and no watcher is told."""
        event = self.tree.compare_and_swap("/1/foo", "a", 2, "", NOON_NS + 7, refresh=True)
        self.assertEqual(event.node, NodeView("/1/foo", "a", False, NOON_NS + 7, (), 3, 2))
        self.assertEqual(self.sink.told[-1], "add compareAndSwap /1/foo 3")

    def test_delete(self) -> None:
        """A key with the value, the index, or both as expected is removed."""
        event = self.tree.compare_and_delete("/1/foo", "a", 2)
        self.assertEqual(event.action, Action.COMPARE_AND_DELETE)
        self.assertEqual(event.node, NodeView("/1/foo", None, False, PERMANENT, (), 3, 2))
        self.assertEqual(event.previous, NodeView("/1/foo", "a", False, NOON_NS, (), 2, 2))
        self.assertEqual(self.sink.told[-2:], ["removed /1/foo 3", "notify compareAndDelete /1/foo 3"])
        self.assertEqual((self.paths(), self.tree.first_end_ns), (["/", CLUSTER, KEYS, "/1/dir"], None))

    def test_what_was_wrong(self) -> None:
        """The cause names what was given and what there is: of the value, of the index, or of both."""
        for value, index, cause in (
            ("b", 0, "[b != a]"),
            ("b", 2, "[b != a]"),
            ("", 7, "[7 != 2]"),
            ("a", 7, "[7 != 2]"),
            ("b", 7, "[b != a] [7 != 2]"),
        ):
            self.assert_refused(
                V2Code.TEST_FAILED,
                cause,
                self.tree.compare_and_swap,
                "/1/foo",
                value,
                index,
                "x",
            )
            self.assert_refused(
                V2Code.TEST_FAILED,
                cause,
                self.tree.compare_and_delete,
                "/1/foo",
                value,
                index,
            )

    def test_only_files(self) -> None:
        """A directory is not compared."""
        self.assert_refused(V2Code.NOT_FILE, "/1/dir", self.tree.compare_and_swap, "/1/dir", "", 1, "x")
        self.assert_refused(V2Code.NOT_FILE, "/1/dir", self.tree.compare_and_delete, "/1/dir", "", 1)

    def test_only_what_is_there(self) -> None:
        """A key that is not there is not found, whatever it is compared with."""
        self.assert_refused(V2Code.KEY_NOT_FOUND, "/1/no", self.tree.compare_and_swap, "/1/no", "a", 0, "x")
        self.assert_refused(V2Code.KEY_NOT_FOUND, "/1/no", self.tree.compare_and_delete, "/1/no", "a", 0)
        self.assert_refused(V2Code.NOT_DIR, "/1/foo", self.tree.compare_and_delete, "/1/foo/x", "a", 0)

    def test_root(self) -> None:
        """The root is read only for a swap, and no file for a delete."""
        for path in ("/", CLUSTER, KEYS):
            self.assert_refused(V2Code.ROOT_READ_ONLY, "/", self.tree.compare_and_swap, path, "", 1, "x")
            self.assert_refused(V2Code.NOT_FILE, path, self.tree.compare_and_delete, path, "", 1)


class DeleteTests(DirectoryCase):
    """DELETE without a comparison."""

    def test_file(self) -> None:
        """A file is removed, with or without dir and recursive; what it was is told."""
        for is_dir, recursive in ((False, False), (True, False), (False, True)):
            created = self.tree.set("/1/foo", False, "bar", NOON_NS).index
            event = self.tree.delete("/1/foo", is_dir, recursive)
            self.assertEqual(event.action, Action.DELETE)
            self.assertEqual(event.node, NodeView("/1/foo", None, False, PERMANENT, (), created + 1, created))
            self.assertEqual(event.previous, NodeView("/1/foo", "bar", False, NOON_NS, (), created, created))
            self.assertEqual(
                self.sink.told[-2:], [f"removed /1/foo {created + 1}", f"notify delete /1/foo {created + 1}"]
            )
        self.assertEqual((self.paths(), self.tree.first_end_ns), (["/", CLUSTER, KEYS], None))

    def test_empty_directory(self) -> None:
        """An empty directory is removed with dir, or with recursive."""
        for is_dir, recursive in ((True, False), (False, True)):
            created = self.tree.set("/1/dir", True, "").index
            event = self.tree.delete("/1/dir", is_dir, recursive)
            self.assertEqual(event.node, NodeView("/1/dir", None, True, PERMANENT, (), created + 1, created))
            self.assertEqual(event.previous, NodeView("/1/dir", None, True, PERMANENT, (), created, created))

    def test_directory_with_all_in_it(self) -> None:
        """A recursive delete takes everything below, hidden nodes too; each path is told, the directory itself last."""
        self.tree.set("/1/dir/a/b", False, "x", NOON_NS)
        self.tree.set("/1/dir/_hid", False, "y", NOON_NS)
        self.tree.set("/1/dirx", False, "z")
        self.tree.changed.clear()
        del self.sink.told[:]
        self.tree.delete("/1/dir", recursive=True)
        self.assertEqual(
            sorted(self.sink.told[:-2]), ["removed /1/dir/_hid 4", "removed /1/dir/a 4", "removed /1/dir/a/b 4"]
        )
        self.assertEqual(self.sink.told[-2:], ["removed /1/dir 4", "notify delete /1/dir 4"])
        self.assertLess(self.sink.told.index("removed /1/dir/a/b 4"), self.sink.told.index("removed /1/dir/a 4"))
        self.assertEqual((self.paths(), self.tree.first_end_ns), (["/", CLUSTER, KEYS, "/1/dirx"], None))
        self.assertEqual(self.tree.changed, {"/1/dir", "/1/dir/a", "/1/dir/a/b", "/1/dir/_hid"})
        self.assert_refused(V2Code.KEY_NOT_FOUND, "/1/dir", self.tree.get, "/1/dir/a/b")

    def test_directory_must_be_meant(self) -> None:
        """A directory is no file, and one that is not empty is removed with recursive only."""
        self.tree.set("/1/dir/_hid", False, "x")
        self.assert_refused(V2Code.NOT_FILE, "/1/dir", self.tree.delete, "/1/dir")
        self.assert_refused(V2Code.DIR_NOT_EMPTY, "/1/dir", self.tree.delete, "/1/dir", True)

    def test_only_what_is_there(self) -> None:
        """What is not there is not removed, and nothing is below a file."""
        self.tree.set("/1/foo", False, "x")
        self.assert_refused(V2Code.KEY_NOT_FOUND, "/1/no", self.tree.delete, "/1/no/x", True, True)
        self.assert_refused(V2Code.NOT_DIR, "/1/foo", self.tree.delete, "/1/foo/x")

    def test_root_is_read_only(self) -> None:
        """The root stays, and so do the two directories in it."""
        for path in ("/", CLUSTER, KEYS):
            self.assert_refused(V2Code.ROOT_READ_ONLY, "/", self.tree.delete, path, True, True)

    def test_what_is_gone_can_be_made_again(self) -> None:
        """After a delete nothing is left of what was there."""
        self.tree.set("/1/dir/a", False, "x", NOON_NS)
        self.tree.delete("/1/dir", recursive=True)
        self.assertTrue(self.tree.set("/1/dir", False, "y").is_created)
        self.assertEqual(self.value("/1/dir"), "y")


class ExpireTests(DirectoryCase):
    """Ends that have come."""

    def test_in_the_order_of_their_ends(self) -> None:
        """Nodes go when their end has come, the earliest first, each with an index of its own, and not before."""
        self.tree.set("/1/late", False, "", NOON_NS + 2)
        self.tree.set("/1/soon", False, "x", NOON_NS + 1)
        self.tree.set("/1/never", False, "")
        self.assertEqual((self.tree.expire(NOON_NS), self.tree.index), (0, 3))
        self.assertEqual((self.tree.expire(NOON_NS + 1), self.tree.first_end_ns), (1, NOON_NS + 2))
        self.assertEqual(self.tree.expire(NOON_NS + 100), 1)
        self.assertEqual(self.tree.expire(NOON_NS + 100), 0)
        self.assertEqual(
            self.sink.told[3:],
            ["removed /1/soon 4", "notify expire /1/soon 4", "removed /1/late 5", "notify expire /1/late 5"],
        )
        self.assertEqual((self.paths(), self.tree.first_end_ns), (["/", CLUSTER, KEYS, "/1/never"], None))
        self.assertEqual(self.tree.counters.counts["expireCount"], 2)

    def test_what_the_event_says(self) -> None:
        """An expiry has the key as it was as its previous node, and no value and no end as its node."""
        events: list[Event] = []
        self.patch(self.sink, "notify", events.append)
        self.tree.set("/1/foo", False, "x", NOON_NS)
        self.tree.set("/1/dir", True, "", NOON_NS + 1)
        self.tree.expire(NOON_NS + 1)
        self.assertEqual([event.action for event in events[2:]], [Action.EXPIRE, Action.EXPIRE])
        self.assertEqual(events[2].node, NodeView("/1/foo", None, False, PERMANENT, (), 3, 1))
        self.assertEqual(events[2].previous, NodeView("/1/foo", "x", False, NOON_NS, (), 1, 1))
        self.assertEqual(events[3].node, NodeView("/1/dir", None, True, PERMANENT, (), 4, 2))
        self.assertEqual(events[3].previous, NodeView("/1/dir", None, True, NOON_NS + 1, (), 2, 2))

    def test_directory_takes_all_with_it(self) -> None:
        """A directory goes with everything in it in one event, also with keys whose own ends are due or later."""
        self.tree.set("/1/dir", True, "", NOON_NS)
        self.tree.set("/1/dir/due", False, "", NOON_NS)
        self.tree.set("/1/dir/later", False, "", NOON_NS + 5)
        self.tree.set("/1/dir/never", False, "")
        self.assertEqual((self.tree.expire(NOON_NS), self.tree.index), (1, 5))
        self.assertEqual((self.paths(), self.tree.first_end_ns), (["/", CLUSTER, KEYS], None))

    def test_equal_ends_in_the_order_of_paths(self) -> None:
        """Nodes with equal ends go in the order of their paths, whatever the order in which they were made."""
        for name in ("c", "a", "b/x"):
            self.tree.set("/1/" + name, False, "", NOON_NS)
        self.tree.expire(NOON_NS)
        notified = [line for line in self.sink.told if line.startswith("notify expire")]
        self.assertEqual(notified, ["notify expire /1/a 4", "notify expire /1/b/x 5", "notify expire /1/c 6"])


class GetTests(DirectoryCase):
    """GET without wait."""

    def test_file(self) -> None:
        """A file is read with the index of the store beside its own."""
        self.tree.set("/1/foo", False, "bar", NOON_NS)
        self.tree.set("/1/other", False, "")
        event = self.tree.get("/1/foo", True, True)
        self.assertEqual((event.action, event.previous, event.etcd_index), (Action.GET, None, 2))
        self.assertEqual(event.node, NodeView("/1/foo", "bar", False, NOON_NS, (), 1, 1))
        self.assertFalse(event.is_created)

    def test_one_level(self) -> None:
        """A listing shows what is in the directory, and not what is in the directories there."""
        self.tree.set("/1/dir/b/x", False, "1")
        self.tree.set("/1/dir/a", False, "2")
        self.assertEqual(self.keys("/1/dir"), ["/1/dir/a", "/1/dir/b"])
        self.assertEqual(self.tree.get("/1/dir").node.nodes[0].nodes, ())

    def test_recursive(self) -> None:
        """A recursive listing shows all below, those in a directory within it."""
        for name in ("b/y/z", "b/x", "a", "c"):
            self.tree.set("/1/dir/" + name, False, name)
        self.assertEqual(
            self.keys("/1/dir", True),
            ["/1/dir/a", "/1/dir/b", "/1/dir/b/x", "/1/dir/b/y", "/1/dir/b/y/z", "/1/dir/c"],
        )
        self.assertEqual(self.tree.get("/", True).node.nodes[1].key, KEYS)

    def test_sorted_by_bytes(self) -> None:
        """Sorted means by the bytes of the keys, also where they are no UTF-8; unsorted shows the same nodes."""
        names = ["b", "a", "Z", "\udcff", "\ue000", "é", "\U0001f600", "a\udc80"]
        for name in names:
            self.tree.set("/1/" + name, False, "")
        found = [key.removeprefix("/1/").encode("utf-8", "surrogateescape") for key in self.keys(KEYS)]
        self.assertEqual(found, sorted(name.encode("utf-8", "surrogateescape") for name in names))
        unsorted = self.tree.get(KEYS).node.nodes
        self.assertEqual({node.key for node in unsorted}, {"/1/" + name for name in names})

    def test_hidden_nodes(self) -> None:
        """Files and directories whose names begin with an underscore are in no listing, but can be read themselves."""
        self.tree.set("/1/dir/_file", False, "secret")
        self.tree.set("/1/dir/_dir/a", False, "1")
        self.tree.set("/1/dir/_dir/_b", False, "2")
        self.tree.set("/1/dir/not_hidden", False, "3")
        self.assertEqual(self.keys("/1/dir"), ["/1/dir/not_hidden"])
        self.assertEqual(self.keys("/1/dir", True), ["/1/dir/not_hidden"])
        self.assertEqual(self.value("/1/dir/_file"), "secret")
        self.assertEqual(self.keys("/1/dir/_dir", True), ["/1/dir/_dir/a"])
        found = self.tree.node("/1/dir/_dir")
        assert found is not None
        self.assertTrue(found.is_hidden)

    def test_view_does_not_change(self) -> None:
        """What was read or told stays as it was when the tree goes on."""
        event = self.tree.set("/1/foo", False, "a")
        read = self.tree.get(KEYS)
        self.tree.update("/1/foo", "b", NOON_NS)
        self.tree.delete("/1/foo")
        self.assertEqual((event.node.value, read.node.nodes[0].value), ("a", "a"))

    def test_not_there(self) -> None:
        """The cause is the first segment that is missing, or the file that is in the way."""
        self.tree.set("/1/dir/foo", False, "x")
        for path, code, cause in (
            ("/1/no", V2Code.KEY_NOT_FOUND, "/1/no"),
            ("/1/dir/no/deep/er", V2Code.KEY_NOT_FOUND, "/1/dir/no"),
            ("/9", V2Code.KEY_NOT_FOUND, "/9"),
            ("/1/dir/foo/x", V2Code.NOT_DIR, "/1/dir/foo"),
            ("/1/dir/foo/x/y", V2Code.NOT_DIR, "/1/dir/foo"),
        ):
            self.assert_refused(code, cause, self.tree.get, path)


class CountersTests(DirectoryCase):
    """What the statistics of the store are made of."""

    def test_each_kind_by_its_outcome(self) -> None:
        """Requests are counted by kind and outcome, in etcd's order."""
        self.assertEqual(list(self.tree.counters.counts)[:4], ["getsSuccess", "getsFail", "setsSuccess", "setsFail"])
        requests: list[tuple[str, Callable[[str], object]]] = [
            ("sets", lambda path: self.tree.set(path, False, "x")),
            ("gets", self.tree.get),
            ("gets", lambda path: self.tree.get(path, True)),
            ("update", lambda path: self.tree.update(path, "x")),
            ("compareAndSwap", lambda path: self.tree.compare_and_swap(path, "x", 0, "y")),
            ("compareAndDelete", lambda path: self.tree.compare_and_delete(path, "y", 0)),
            ("create", lambda path: self.tree.create(path, False, "x")),
            ("delete", self.tree.delete),
        ]
        self.tree.set("/1/file", False, "")
        for times, (kind, request) in enumerate(requests, 1):
            before = dict(self.tree.counters.counts)
            request("/1/foo")
            for _ in range(times):
                self.assertRaises(V2Error, request, "/1/file/x")
            before[kind + "Success"] += 1
            before[kind + "Fail"] += times
            self.assertEqual(self.tree.counters.counts, before)
        counters = self.tree.counters
        self.assertEqual((counters.recursive_gets_succeeded, counters.recursive_gets_failed), (1, 3))
