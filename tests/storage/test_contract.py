"""The contract catches a backend that breaks it: one broken promise at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from twisted.trial.reporter import TestResult
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.storage.backend import Backend, BackendError, Batch, Bucket, RevisionRow, Size
from twistedkv.storage.contract import BackendContract
from twistedkv.storage.memory import MemoryBackend

BY_NAME = sorted(name for name in dir(BackendContract) if name.startswith("test_"))


class Torn(MemoryBackend):
    """Applies what comes before the row that it refuses."""

    def write(self, batch: Batch) -> None:
        for row in batch.rows:
            super().write(Batch([row]))
        super().write(Batch(records=batch.records))


class Forgetful(MemoryBackend):
    """Refuses a batch, with its records applied."""

    def write(self, batch: Batch) -> None:
        super().write(Batch(records=batch.records))
        super().write(Batch(batch.rows))


class Accepting(MemoryBackend):
    """Refuses nothing."""

    def write(self, batch: Batch) -> None:
        try:
            super().write(batch)
        except BackendError:
            return


class Exclusive(MemoryBackend):
    """Takes the last revision of a scan for an exclusive bound."""

    def scan(self, first: int, last: int, limit: int) -> list[RevisionRow]:
        return super().scan(first, last - 1, limit)


class Unlimited(MemoryBackend):
    """Does not count."""

    def scan(self, first: int, last: int, limit: int) -> list[RevisionRow]:
        return super().scan(first, last, 2**31)


class Unordered(MemoryBackend):
    """Gives rows as they were asked for."""

    def rows(self, revisions: Sequence[int]) -> list[RevisionRow]:
        return [row for revision in revisions for row in super(Unordered, self).rows([revision])]


class Textual(MemoryBackend):
    """Orders keys as text that ignores case."""

    def range_at(self, key: bytes, range_end: bytes | None, last: int) -> list[RevisionRow]:
        return sorted(super().range_at(key, range_end, last), key=lambda row: row.key.lower())


class Truncating(MemoryBackend):
    """Finds keys by their first hundred bytes."""

    def range_at(self, key: bytes, range_end: bytes | None, last: int) -> list[RevisionRow]:
        return (
            super().range_at(key[:100], range_end, last) if len(key) > 100 else super().range_at(key, range_end, last)
        )


class Undead(MemoryBackend):
    """Shows deleted keys."""

    def range_at(self, key: bytes, range_end: bytes | None, last: int) -> list[RevisionRow]:
        live = super().range_at(key, range_end, last)
        return live or [row for row in self.scan(0, last, 100) if row.key == key and row.tombstone]


class Timeless(MemoryBackend):
    """Answers every question about the past with the present."""

    def range_at(self, key: bytes, range_end: bytes | None, last: int) -> list[RevisionRow]:
        return super().range_at(key, range_end, 2**63 - 1)


class Hoarding(MemoryBackend):
    """Compacts nothing."""

    def compact(self, compacted: int, after: int, limit: int) -> tuple[int, int]:
        return 0, 0


class Greedy(MemoryBackend):
    """Compacts a revision too much."""

    def compact(self, compacted: int, after: int, limit: int) -> tuple[int, int]:
        return super().compact(compacted + 1, after, limit)


class Endless(MemoryBackend):
    """Compacts all at once, whatever the limit."""

    def compact(self, compacted: int, after: int, limit: int) -> tuple[int, int]:
        return super().compact(compacted, after, 2**31)


class Blind(MemoryBackend):
    """Takes what is there for what survives."""

    def surviving(self, first: int, last: int, compacted: int, limit: int) -> list[RevisionRow]:
        return self.scan(first, last, limit)


class Merged(MemoryBackend):
    """Has one table for all records."""

    def records(self, bucket: Bucket) -> dict[bytes, bytes]:
        return {key: value for each in Bucket for key, value in super(Merged, self).records(each).items()}


class Hasty(MemoryBackend):
    """Forgets the last of many records."""

    def write(self, batch: Batch) -> None:
        super().write(Batch(batch.rows, dict(list(batch.records.items())[:128])))


class Clipping(MemoryBackend):
    """Cuts the keys of records where an index would end."""

    def write(self, batch: Batch) -> None:
        super().write(Batch(batch.rows, {(bucket, key[:900]): value for (bucket, key), value in batch.records.items()}))


class Unsigned(MemoryBackend):
    """Keeps 63 bits of a lease."""

    def write(self, batch: Batch) -> None:
        super().write(Batch([row._replace(lease=row.lease & 2**63 - 1) for row in batch.rows], batch.records))


class Overlaying(MemoryBackend):
    """Leaves what was there below what it replaces it by."""

    def replace(self, batches: Iterable[Batch]) -> None:
        records = {(bucket, key): value for bucket in Bucket for key, value in self.records(bucket).items()}
        super().replace([Batch(records=dict(records)), *batches])


class Impatient(MemoryBackend):
    """Empties itself before it has anything in place of that."""

    def replace(self, batches: Iterable[Batch]) -> None:
        super().replace([])
        super().replace(batches)


class Piecemeal(MemoryBackend):
    """Replaces itself by each batch that comes well."""

    def replace(self, batches: Iterable[Batch]) -> None:
        done: list[Batch] = []
        for batch in batches:
            super().replace([*done, batch])
            done.append(batch)


class Rephrasing(MemoryBackend):
    """Takes every failure for one of its own."""

    def replace(self, batches: Iterable[Batch]) -> None:
        try:
            super().replace(batches)
        except Exception as error:
            raise BackendError("memory: something is wrong") from error


class Collecting(MemoryBackend):
    """Wants to have everything before it begins."""

    def replace(self, batches: Iterable[Batch]) -> None:
        super().replace(list(batches))


class Weightless(MemoryBackend):
    """Does not measure."""

    def size(self) -> Size:
        return Size(0, 0)


class BackendContractTests(SynchronousTestCase):
    """Runs the contract's suite on purpose-built failures."""

    def test_each_broken_promise_is_caught(self) -> None:
        """Every defect fails the test that examines it."""
        for backend, caught_by in {
            Torn: "test_refused_batch_leaves_nothing",
            Forgetful: "test_refused_batch_leaves_nothing",
            Accepting: "test_refused_batch_leaves_nothing",
            Exclusive: "test_scan_ascends_between_both_bounds",
            Unlimited: "test_scan_stops_at_its_limit",
            Unordered: "test_rows_by_revision",
            Textual: "test_range_is_in_bytewise_key_order",
            Truncating: "test_large_keys",
            Undead: "test_range_in_the_past",
            Timeless: "test_range_in_the_past",
            Hoarding: "test_compaction_leaves_the_survivors",
            Greedy: "test_compaction_leaves_the_survivors",
            Endless: "test_compaction_looks_at_a_bounded_number_of_rows",
            Blind: "test_surviving_leaves_out_what_compaction_would_drop",
            Merged: "test_every_bucket_holds_records",
            Hasty: "test_many_records_at_once",
            Clipping: "test_large_records",
            Unsigned: "test_rows_come_back_as_they_were",
            Overlaying: "test_replacing_by_nothing",
            Impatient: "test_failure_of_the_source_leaves_the_old_state",
            Piecemeal: "test_refused_replacement_leaves_the_old_state",
            Rephrasing: "test_failure_of_the_source_leaves_the_old_state",
            Collecting: "test_batches_are_let_go_of",
            Weightless: "test_size_follows_the_data",
        }.items():
            self.assertIn(caught_by, failures_of(backend, durable=False), backend.__name__)

    def test_lost_data_is_caught(self) -> None:
        """A backend that says it is durable, and keeps nothing and locks nothing, fails where that is examined."""
        self.assertLessEqual(
            {
                "test_data_survives_reopening",
                "test_second_open_is_refused",
                "test_interrupted_compaction_is_done_again",
                "test_replacement_survives_reopening",
            },
            failures_of(MemoryBackend, durable=True),
        )

    def test_reference_breaks_nothing(self) -> None:
        """The reference passes: the failures above are the defects'."""
        self.assertEqual(failures_of(MemoryBackend, durable=False), set())


def failures_of(backend: type[MemoryBackend], durable: bool) -> set[str]:
    """The names of the contract's tests that ``backend`` does not pass."""

    class Suite(BackendContract, SynchronousTestCase):
        def make_backend(self) -> Backend:
            return backend()

    Suite.durable = durable
    failed = set()
    for name in BY_NAME:
        result = TestResult()
        Suite(name).run(result)
        if not result.wasSuccessful():
            failed.add(name)
    return failed
