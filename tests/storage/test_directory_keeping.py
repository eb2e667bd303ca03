"""The tree of the v2 API put together again from what was kept, and at sizes that are allowed, if not wise."""

from __future__ import annotations

import random
from time import perf_counter
from typing import Any

from tests.storage.treecase import NOON_NS, SECOND_NS, DirectoryCase, Sink, copied
from twistedkv.storage.directory import CLUSTER, KEYS, Directory
from twistedkv.v2errors import V2Code, V2Error
from twistedkv.v2events import PERMANENT, Event


class KeepingTests(DirectoryCase):
    """A tree that is put together again."""

    def test_loaded_tree_is_the_same(self) -> None:
        """A tree of nodes that were kept answers as the first one did, and has nothing new to be kept."""
        self.tree.set("/0/members/1", False, "m")
        self.tree.set("/1/dir/foo", False, "bar", NOON_NS)
        self.tree.set("/1/empty", True, "", NOON_NS + 1)
        self.tree.set("/2/auth", False, "")
        copy = copied(self.tree)
        self.assertEqual(self.dump(copy), self.dump())
        self.assertEqual((copy.index, copy.first_end_ns, copy.changed), (4, NOON_NS, set()))
        self.assertEqual(copy.get("/", True, True).node, self.tree.get("/", True, True).node)

    def test_indexes_of_the_namespaces_are_kept(self) -> None:
        """The directories that every tree has take the indexes that were kept for them."""
        self.tree.load(KEYS, None, 3, 4, PERMANENT)
        node = self.tree.get(KEYS).node
        self.assertEqual((node.created, node.modified), (3, 4))

    def test_what_can_not_be_loaded(self) -> None:
        """A node without its directory, below a file, twice, or with a path that is none, is refused."""
        self.tree.load("/1/file", "x", 1, 1, PERMANENT)
        for path, value in (
            ("/1/no/x", "x"),
            ("/1/file/x", "x"),
            ("/1/file", "x"),
            ("/1/file", None),
            (KEYS, "x"),
            ("/", "x"),
            ("", None),
            ("/1//x", "x"),
            ("/1/x/", "x"),
            ("/1/../x", "x"),
        ):
            before = self.dump()
            self.assertRaises(ValueError, self.tree.load, path, value, 1, 1, PERMANENT)
            self.assertEqual(self.dump(), before)

    def test_restored_tree_has_another_ones_content(self) -> None:
        """A tree that takes the content of a later one goes on from there, and tells the same sink."""
        self.tree.set("/1/old", False, "x", NOON_NS)
        later = Directory(Sink())
        later.set("/1/new", False, "y", NOON_NS + 1)
        later.set("/1/new2", False, "y")
        counted = dict(self.tree.counters.counts)
        self.tree.restore(later)
        self.assertEqual((self.tree.index, self.tree.first_end_ns), (2, NOON_NS + 1))
        self.assertEqual(self.paths(), ["/", CLUSTER, KEYS, "/1/new", "/1/new2"])
        self.assertEqual(self.tree.changed, {"/1/new", "/1/new2"})
        self.assertEqual(self.tree.counters.counts, counted)
        self.tree.delete("/1/new")
        self.assertEqual(self.sink.told[-1], "notify delete /1/new 3")

    def test_equal_requests_give_equal_trees(self) -> None:
        """Members that take the same log in other portions, one restored from a copy in between, stay the same.

        That goes for every event, also for those of nodes whose ends are equal.
        """
        dice = random.Random(5)
        paths = [f"/1/{a}{b}" for a in ("a", "b", "_c", "d") for b in ("", "/x", "/y", "/x/z")]
        log: list[tuple[str, tuple[Any, ...]]] = []
        for _ in range(600):
            path, ends_ns, value = dice.choice(paths), NOON_NS + dice.randrange(4) * SECOND_NS, dice.choice("xyz")
            index, is_dir = dice.randrange(400), dice.random() < 0.3
            requests: list[tuple[str, tuple[Any, ...]]] = [
                ("set", (path, is_dir, value, ends_ns)),
                ("update", (path, value, ends_ns)),
                ("create", (path, is_dir, value, ends_ns)),
                ("compare_and_swap", (path, value, index, "w", ends_ns)),
                ("delete", (path, False, is_dir)),
                ("expire", (ends_ns - SECOND_NS * dice.randrange(2),)),
            ]
            log.append(dice.choices(requests, (9, 3, 3, 1, 1, 0.4))[0])

        def outcome(tree: Directory, request: tuple[str, tuple[Any, ...]]) -> object:
            try:
                result = getattr(tree, request[0])(*request[1])
            except V2Error as error:
                return error.code, error.cause, error.index
            return (result.action, result.node, result.previous) if isinstance(result, Event) else result

        expected = [outcome(self.tree, request) for request in log]
        expirations = self.tree.counters.counts["expireCount"]
        self.assertGreater(expirations, 20)
        for _ in range(5):
            sink = Sink()
            other = Directory(sink)
            restarts = set(dice.sample(range(len(log)), 5))
            outcomes: list[object] = []
            for number, request in enumerate(log):
                if number in restarts:
                    other.restore(copied(other))
                outcomes.append(outcome(other, request))
            self.assertEqual(outcomes, expected)
            self.assertEqual(self.dump(other), self.dump())
            self.assertEqual(
                [line for line in sink.told if not line.startswith("removed")],
                [line for line in self.sink.told if not line.startswith("removed")],
            )


class BigTreeTests(DirectoryCase):
    """Sizes that are allowed, if not wise."""

    def test_deep_path(self) -> None:
        """Every request works on a path of 8,000 segments."""
        deep = KEYS + "/d" * 8_000
        self.tree.set(deep, False, "x")
        self.tree.update(deep, "y", NOON_NS)
        self.tree.compare_and_swap(deep, "y", 2, "z", NOON_NS)
        self.assertEqual(self.value(deep), "z")
        self.assert_refused(V2Code.NOT_DIR, deep, self.tree.get, deep + "/x" * 50)
        self.assert_refused(V2Code.KEY_NOT_FOUND, deep + "x", self.tree.get, deep + "x/x")
        self.assert_refused(V2Code.NODE_EXISTS, deep, self.tree.create, deep, False, "x")
        listing, depth = self.tree.get(KEYS, True, True).node, 0
        while listing.nodes:
            (listing,) = listing.nodes
            depth += 1
        self.assertEqual((depth, listing.key, listing.value), (8_000, deep, "z"))
        self.tree.restore(copied(self.tree))
        self.assertEqual(self.tree.expire(NOON_NS), 1)
        self.tree.set(deep, False, "x")
        self.tree.compare_and_delete(deep, "x", 5)
        self.tree.delete("/1/d", recursive=True)
        self.assertEqual(self.paths(), ["/", CLUSTER, KEYS])

    def test_wide_directory(self) -> None:
        """A request costs about the same in a directory of 20,000 keys as in an empty one, and all go at once."""

        def cost(prefix: str) -> float:
            def once() -> float:
                start = perf_counter()
                for number in range(100):
                    self.tree.set(f"{prefix}/{number}", False, "y", NOON_NS + number)
                    self.tree.get(f"{prefix}/{number}")
                return perf_counter() - start

            return min(once() for _ in range(5))

        for number in range(20_000):
            self.tree.set(f"/1/wide/{number}", False, "x", NOON_NS + number)
        self.assertLess(cost("/1/wide"), 20 * cost("/1/narrow"))  # a scan of the directory would be hundreds of times
        self.tree.delete("/1/wide", recursive=True)
        self.assertEqual((len(self.paths()), self.tree.first_end_ns), (3 + 101, NOON_NS))
