"""What the contract's tests stand on: a backend for each test, rows to write, and failures that can be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from twistedkv.storage.backend import Backend, Batch, RevisionRow, pack

if TYPE_CHECKING:
    _Base = SynchronousTestCase
else:
    _Base = object  # mixed in, so that trial does not run the suite by itself

EVERYTHING = 2**63 - 1  # a revision after all others
MIB = 1024 * 1024
FROM_KEY = b"\0"


def put(
    main: int, key: bytes, value: bytes = b"value", *, sub: int = 0, version: int = 1, lease: int = 0
) -> RevisionRow:
    """A row that puts ``key``, for tests."""
    return RevisionRow(pack(main, sub), key, main, version, lease, value, False)


def tombstone(main: int, key: bytes, *, sub: int = 0) -> RevisionRow:
    """A row that deletes ``key``, for tests."""
    return RevisionRow(pack(main, sub), key, 0, 0, 0, b"", True)


class BackendCase(_Base):
    """Opens the backend of each test, and closes it. All tests begin with an empty database."""

    durable = True  # data survives close(), and a second process is kept out
    shrinks = True  # defragment() makes size().total smaller after much was deleted

    def make_backend(self) -> Backend:
        """A backend that is not open, on the data of this test: a later one sees what an earlier one wrote."""
        raise NotImplementedError

    def setUp(self) -> None:
        """Open the backend."""
        super().setUp()
        self.backend = self.make_backend()
        self.backend.open()

    def tearDown(self) -> None:
        """Close the backend that is open last."""
        self.backend.close()
        super().tearDown()

    def reopen(self) -> None:
        """Close, and open the same data by another object."""
        self.backend.close()
        self.backend = self.make_backend()
        self.backend.open()

    def write(self, *rows: RevisionRow) -> None:
        """One batch of rows alone."""
        self.backend.write(Batch(list(rows)))

    def assert_rows(self, found: list[RevisionRow], wanted: list[RevisionRow]) -> None:
        """They are equal; otherwise they are shown cut short, where a diff of large values would take minutes."""
        if found != wanted:
            self.fail(f"{_cut_short(found)} is not {_cut_short(wanted)}")

    def compact_all(self, compacted: int, limit: int = 3) -> int:
        """Compact to the end in small steps; how many rows were deleted."""
        after, deleted = 0, 0
        for _ in range(100_000):
            count, after = self.backend.compact(compacted, after, limit)
            deleted += count
            if after == 0:
                return deleted
        self.fail("compaction does not come to an end")

    def needs_durability(self) -> None:
        """Skip the test for a backend that keeps nothing."""
        if not self.durable:
            raise SkipTest("this backend keeps nothing")


def survivors(rows: Sequence[RevisionRow], compacted: int) -> list[RevisionRow]:
    """The model of compaction: what is left of ``rows``."""
    bound = pack(compacted + 1)
    newest = {row.key: row for row in rows if row.revision < bound}
    return [row for row in rows if row.revision >= bound or (newest[row.key] is row and not row.tombstone)]


def _cut_short(rows: Sequence[RevisionRow]) -> list[RevisionRow]:
    return [row._replace(key=row.key[-20:], value=row.value[:20]) for row in rows]
