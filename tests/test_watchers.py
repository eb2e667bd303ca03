"""Finding who wants a key, against looking at every range."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.watchers import RangeIndex, prefix_end

keys = st.binary(min_size=1, max_size=3).map(lambda key: bytes(b"\x00\x01ab\xfe\xff"[byte % 6] for byte in key))
ranges = st.one_of(
    st.tuples(keys, st.just(b"")),
    st.tuples(keys, st.just(b"\0")),
    keys.map(lambda key: (key, prefix_end(key))),
    st.tuples(keys, keys).filter(lambda pair: pair[0] < pair[1]),
)


def within(key: bytes, start: bytes, end: bytes) -> bool:
    return key == start if not end else start <= key and (end == b"\0" or key < end)


class RangeIndexTests(SynchronousTestCase):
    """Items by range."""

    @given(st.lists(ranges, max_size=30), st.lists(st.integers(0, 29)), st.lists(keys, min_size=1))
    def test_finds_what_a_search_finds(
        self, added: list[tuple[bytes, bytes]], gone: list[int], asked: list[bytes]
    ) -> None:
        """A key finds exactly the items whose range holds it, each once, also after others went."""
        index = RangeIndex[int]()
        left = dict(enumerate(added))
        for number, (key, end) in left.items():
            index.add(key, end, number)
        for number in gone:
            if number in left:
                index.discard(*left.pop(number), number)
        for key in asked:
            wanted = [number for number, (start, end) in left.items() if within(key, start, end)]
            self.assertEqual(sorted(index.matching(key)), wanted)

    def test_many_ranges(self) -> None:
        """Thousands of overlapping ranges are found and taken out again."""
        index = RangeIndex[int]()
        spans = [
            (b"%05d" % (number * 7 % 2_000), b"%05d" % (number * 7 % 2_000 + number % 90 + 2))
            for number in range(3_000)
        ]
        for number, (start, end) in enumerate(spans):
            index.add(start, end, number)
        for round_ in range(2):
            for key in (b"00000", b"00999x", b"01500", b"02050", b"1"):
                wanted = [n for n, (start, end) in enumerate(spans) if start <= key < end and (not round_ or n % 2)]
                self.assertEqual(sorted(index.matching(key)), wanted)
            if not round_:
                for number in range(0, 3_000, 2):
                    index.discard(*spans[number], number)
        for number in range(1, 3_000, 2):
            index.discard(*spans[number], number)
        self.assertEqual(index.matching(b"01000"), [])
        self.assertRaises(ValueError, index.discard, b"00000", b"00005", 1)

    def test_prefix_end(self) -> None:
        """The end of a prefix is the next key that does not start with it."""
        for prefix, end in (
            (b"a", b"b"),
            (b"a\xff", b"b"),
            (b"a\xfe\xff", b"a\xff"),
            (b"\xff\xff", b"\0"),
            (b"", b"\0"),
        ):
            self.assertEqual(prefix_end(prefix), end)
