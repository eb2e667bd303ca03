"""The key index against a plain dictionary."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.pb.kv_pb2 import KeyValue
from twistedkv.storage.backend import pack
from twistedkv.storage.keyindex import FROM_KEY, SMALL_BYTES, Evicted, KeyIndex


def pair(key: bytes, value: bytes, revision: int = 2) -> bytes:
    """An encoded pair."""
    return KeyValue(
        key=key, create_revision=1, mod_revision=revision, version=3, value=value, lease=4
    ).SerializeToString()


def within(key: bytes, start: bytes, end: bytes) -> bool:
    """Whether ``key`` is in a request's range."""
    return key == start if not end else start <= key and (end == FROM_KEY or key < end)


class KeyIndexAgainstModelTests(SynchronousTestCase):
    """Random changes, with evictions at any time."""

    @settings(max_examples=100, deadline=None)
    @given(seed=st.integers(0, 1 << 32), length=st.integers(1, 80))
    def test_random_changes(self, seed: int, length: int) -> None:
        """Keys, counts and values are a sorted dictionary's; the limit holds after evicting; the books balance."""
        dice = Random(seed)
        keys = [b"", b"a", b"a\0", b"b", b"bb", b"c", b"\xff", b"\xff\xff"]
        index, model, subs = KeyIndex(dice.choice((0, 300, 1000))), dict[bytes, bytes](), dict[bytes, int]()
        for revision in range(length):
            key = dice.choice(keys)
            match dice.randint(0, 5):
                case 0 if key in model:
                    index.remove(key)
                    del model[key]
                case 1:
                    index.evict(dice.choice((1, 2, 10_000)))
                case 2:
                    index.load(dict(index.entries), {each: subs[each] for each in model if subs[each]})
                case _:
                    model[key] = pair(key, b"v" * dice.choice((0, 1, 127, 200, 300)), revision)
                    subs[key] = dice.choice((0, 0, 1, 5))
                    index.set(key, model[key], subs[key])
            self.assert_equal(index, model, subs)
            start, end, limit = dice.choice(keys), dice.choice((b"", FROM_KEY, *keys)), dice.choice((0, 1, 2))
            expected = sorted(each for each in model if within(each, start, end))
            self.assertEqual(index.keys(start, end), expected)
            self.assertEqual(index.keys(start, end, limit), expected[:limit] if limit else expected)
            self.assertEqual(index.count(start, end), len(expected))
            evicted = [index.entries[each] for each in expected]
            self.assertEqual(
                list(index.not_resident(start, end)), [each.revision for each in evicted if isinstance(each, Evicted)]
            )
        index.evict()
        self.assertLessEqual(index.resident_bytes, index.limit_bytes)

    def assert_equal(self, index: KeyIndex, model: dict[bytes, bytes], subs: dict[bytes, int]) -> None:
        """Entries are the model's, whole or evicted, and the counters are what a recount gives."""
        self.assertEqual(len(index), len(model))
        resident = 0
        for key, entry in index.entries.items():
            if isinstance(entry, Evicted):
                full = KeyValue.FromString(model[key])
                packed = pack(full.mod_revision, subs[key])
                self.assertEqual(entry, Evicted(packed, 1, full.mod_revision, 3, 4, len(full.value)))
            else:
                self.assertEqual(entry, model[key])
                size = len(entry) - len(key)
                resident += size if size > SMALL_BYTES else 0
        self.assertEqual(index.resident_bytes, resident)
        self.assertEqual(index.evicted, sum(isinstance(entry, Evicted) for entry in index.entries.values()))


class EvictionTests(SynchronousTestCase):
    """Which values go."""

    def setUp(self) -> None:
        self.index = KeyIndex(0)
        for key in (b"a", b"b", b"c", b"d"):
            self.index.set(key, pair(key, b"v" * 200), 0)

    def evicted(self) -> list[bytes]:
        """The keys whose values are gone."""
        return sorted(key for key, entry in self.index.entries.items() if isinstance(entry, Evicted))

    def test_goes_on_where_it_stopped(self) -> None:
        """Each call looks at the next keys, and begins anew at the end, so that no value is spared for ever."""
        for expected in ([b"a"], [b"a", b"b"]):
            self.assertEqual(self.index.evict(1), 1)
            self.assertEqual(self.evicted(), expected)
        self.index.set(b"a", pair(b"a", b"v" * 200), 0)
        self.assertEqual(self.index.evict(2), 2)
        self.assertEqual(self.evicted(), [b"b", b"c", b"d"])
        self.assertEqual(self.index.evict(1), 1)
        self.assertEqual(self.evicted(), [b"a", b"b", b"c", b"d"])

    def test_stops_at_the_limit(self) -> None:
        """No more values go than the limit asks for; the next call begins at the first one that was spared."""
        self.index.limit_bytes = self.index.resident_bytes - 1
        self.assertEqual(self.index.evict(), 1)
        self.assertEqual(self.evicted(), [b"a"])
        self.assertEqual(self.index.evict(), 0)
        self.index.limit_bytes = self.index.resident_bytes - 1
        self.assertEqual(self.index.evict(), 1)
        self.assertEqual(self.evicted(), [b"a", b"b"])

    def test_small_values_stay(self) -> None:
        """A value that takes no more room than what would be kept instead stays and does not count."""
        index = KeyIndex(0)
        index.set(b"k" * 500, pair(b"k" * 500, b"v"), 0)
        self.assertEqual((index.resident_bytes, index.evict()), (0, 0))
