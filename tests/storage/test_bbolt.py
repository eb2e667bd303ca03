"""bbolt files: what is written is read back, every page has its place, and damage is noticed."""

from __future__ import annotations

import contextlib  # trial takes a name "suppress" in a test module for its own
import struct
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.storage.bbolt import HEAD_BYTES, PAGE_BYTES, BoltError, BoltReader, BoltWriter

Buckets = Mapping[bytes, Mapping[bytes, bytes]]


def written(buckets: Buckets) -> bytes:
    """A database file."""
    parts: list[bytes] = []
    writer = BoltWriter(parts.append)
    for name, pairs in buckets.items():
        writer.begin(name)
        for key in sorted(pairs):
            writer.put(key, pairs[key])
    head = writer.finish()
    return head + b"".join(parts)[HEAD_BYTES:]


def contents(data: bytes) -> dict[bytes, dict[bytes, bytes]]:
    """What a reader finds in it."""
    reader = BoltReader(data)
    return {name: dict(reader.items(name)) for name in reader.buckets}


class Check:
    """What bbolt's own check looks at, read from the bytes by themselves: each page has one owner and the right head,
    the keys of each tree ascend, a branch knows the first key of every child, and depths are even."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.pages = len(data) // PAGE_BYTES
        self.owned = [0, 1, 2]

    def whole(self) -> None:
        """Raises AssertionError where something is wrong."""
        magic, version, size, _, root, _, free_list, pages, _ = struct.unpack_from("<IIIIQQQQQ", self.data, 16)
        assert (magic, version, size, free_list, pages) == (0xED0CDAED, 2, PAGE_BYTES, 2, self.pages)
        assert len(self.data) == self.pages * PAGE_BYTES
        assert [self.head(number)[:2] for number in range(3)] == [(0, 4), (1, 4), (2, 16)]
        self.tree(root)
        assert sorted(self.owned) == list(range(self.pages)), "a page is lost, or used twice"

    def head(self, page: int) -> tuple[int, int, int, int]:
        number, flags, count, overflow = struct.unpack_from("<QHHI", self.data, page * PAGE_BYTES)
        return number, flags, count, overflow

    def tree(self, page: int) -> tuple[int, bytes, bytes]:
        """Depth, first and last key of what is below ``page``."""
        number, flags, count, overflow = self.head(page)
        assert number == page
        assert flags in (1, 2)
        self.owned += range(page, page + 1 + overflow)
        start, end = page * PAGE_BYTES, (page + 1 + overflow) * PAGE_BYTES
        keys, children = [], []
        for index in range(count):
            at = start + 16 + index * 16
            if flags == 2:
                kind, distance, key_bytes, value_bytes = struct.unpack_from("<IIII", self.data, at)
                key, value = at + distance, at + distance + key_bytes
                assert value + value_bytes <= end
                if kind:
                    self.tree(struct.unpack_from("<QQ", self.data, value)[0])
            else:
                distance, key_bytes, child = struct.unpack_from("<IIQ", self.data, at)
                key = at + distance
                children.append(self.tree(child))
            keys.append(self.data[key : key + key_bytes])
        assert sorted(set(keys)) == keys
        if flags == 2:
            return 0, keys[0] if keys else b"", keys[-1] if keys else b""
        assert len({depth for depth, _, _ in children}) == 1
        assert count >= 1
        assert [first for _, first, _ in children] == keys
        lasts = [last for _, _, last in children]
        assert all(last < following for last, following in zip(lasts, keys[1:], strict=False))
        return children[0][0] + 1, keys[0], lasts[-1]


_KEYS = st.binary(min_size=1, max_size=8) | st.binary(min_size=1, max_size=3).map(lambda seed: seed * 500)
_VALUES = st.sampled_from([b"", b"x", b"y" * 300, b"z" * 4095, b"w" * 100_000])


class RoundTripTests(SynchronousTestCase):
    """Writing, then reading."""

    @given(
        st.dictionaries(
            st.binary(min_size=1, max_size=20), st.dictionaries(_KEYS, _VALUES, max_size=40), min_size=0, max_size=4
        )
    )
    @settings(max_examples=60, deadline=None)
    def test_everything_comes_back(self, buckets: Buckets) -> None:
        """Any buckets with any keys and values, empty ones and huge ones, are read as they were written."""
        data = written(buckets)
        Check(data).whole()
        self.assertEqual(contents(data), buckets)

    @given(st.integers(0, 3_000), st.integers(0, 400), st.integers(1, 200))
    @settings(max_examples=15, deadline=None)
    def test_trees_of_any_height(self, count: int, value_bytes: int, key_bytes: int) -> None:
        """Where one page does not do, pages of pages are built above, up to one root."""
        pairs = {b"%0*d" % (key_bytes + 4, number): bytes(value_bytes) for number in range(count)}
        data = written({b"key": pairs})
        Check(data).whole()
        self.assertEqual(contents(data), {b"key": pairs})

    def test_three_levels(self) -> None:
        """Long keys make branches narrow; the tree is as high as that takes."""
        pairs = {b"%05d" % number + bytes(1_500): b"" for number in range(40)}
        data = written({b"key": pairs})
        check = Check(data)
        check.whole()
        root = struct.unpack_from("<Q", data, 32)[0]
        _, distance, key_bytes, _ = struct.unpack_from("<IIII", data, root * PAGE_BYTES + 16)
        name = root * PAGE_BYTES + 16 + distance + key_bytes
        depth, first, _ = check.tree(struct.unpack_from("<Q", data, name)[0])
        self.assertGreaterEqual(depth, 3)
        self.assertEqual(first, min(pairs))

    def test_order_is_demanded(self) -> None:
        """Keys that do not ascend, pairs without a bucket and buckets of one name are refused."""
        writer = BoltWriter(lambda data: None)
        self.assertRaises(ValueError, writer.put, b"a", b"")
        self.assertRaises(ValueError, writer.begin, b"")
        writer.begin(b"one")
        writer.put(b"b", b"")
        for key in (b"b", b"a", b""):
            self.assertRaises(ValueError, writer.put, key, b"")
        self.assertRaises(ValueError, writer.begin, b"one")
        writer.begin(b"two")
        self.assertRaises(ValueError, writer.begin, b"one")

    def test_a_page_is_all_that_is_held(self) -> None:
        """Pairs are written out as they come, so that the size of the file does not matter."""
        sizes: list[int] = []
        writer = BoltWriter(lambda data: sizes.append(len(data)))
        writer.begin(b"key")
        put = 0
        for number in range(20_000):
            writer.put(b"%08d" % number, bytes(100))
            put += 108
            self.assertLess(put - sum(sizes), 2 * PAGE_BYTES)
        self.assertLessEqual(max(sizes), HEAD_BYTES)


class DamageTests(SynchronousTestCase):
    """Reading what is not whole."""

    def setUp(self) -> None:
        self.pairs = {b"%04d" % number: b"v" * 50 for number in range(500)}
        self.data = bytearray(written({b"key": self.pairs, b"empty": {}}))

    def read(self) -> dict[bytes, dict[bytes, bytes]]:
        """The contents, whatever became of the bytes."""
        return contents(bytes(self.data))

    def test_one_description_is_enough(self) -> None:
        """If either is damaged the other one counts."""
        for page in (0, 1):
            original = bytes(self.data)
            self.data[page * PAGE_BYTES + 20] ^= 1
            self.assertEqual(self.read(), {b"key": self.pairs, b"empty": {}})
            self.data[:] = original
        for page in (0, 1):
            self.data[page * PAGE_BYTES + 50] ^= 1
        self.assertRaises(BoltError, self.read)

    def test_no_database(self) -> None:
        """Other files, and none, are refused."""
        for data in (b"", b"SQLite format 3\0" * 1000, bytes(HEAD_BYTES)):
            self.assertRaises(BoltError, BoltReader, data)

    def test_a_cut_file(self) -> None:
        """Pages that are not there are noticed."""
        for size in range(HEAD_BYTES, len(self.data), PAGE_BYTES):
            with self.assertRaises(BoltError):
                contents(bytes(self.data[:size]))

    def test_a_tree_in_circles(self) -> None:
        """A branch that leads to itself ends in an error, not in endless reading."""
        for page in range(3, len(self.data) // PAGE_BYTES):
            if struct.unpack_from("<QH", self.data, page * PAGE_BYTES)[1] == 1:
                struct.pack_into("<Q", self.data, page * PAGE_BYTES + 16 + 8, page)
                break
        self.assertRaises(BoltError, self.read)

    @given(st.data())
    @settings(max_examples=150, deadline=None)
    def test_any_damage_is_an_error_of_ours(self, data: st.DataObject) -> None:
        """Whatever bytes are changed, reading ends, with a BoltError or with an answer."""
        damaged = bytearray(self.data)
        for _ in range(data.draw(st.integers(1, 4))):
            # Heads and elements are at the beginnings of pages: there it hurts.
            page = data.draw(st.integers(0, len(damaged) // PAGE_BYTES - 1))
            damaged[page * PAGE_BYTES + data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
        with contextlib.suppress(BoltError):
            contents(bytes(damaged))
