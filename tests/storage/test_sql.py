"""The SQL backend keeps the seam's promises, on SQLite as on the reference."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, MetaData, create_engine, insert, inspect, make_url, select, text
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.errors import InvariantError
from twistedkv.storage import sql
from twistedkv.storage.backend import Backend, BackendError, Batch, Bucket, RevisionRow, pack
from twistedkv.storage.contract import EVERYTHING, FROM_KEY, BackendContract, put, tombstone
from twistedkv.storage.dialects import SQLite
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.schema import VERSION, bring_up_to_date, buckets, metadata, schema_version
from twistedkv.storage.sql import SQLBackend

# Few keys, so that they meet again; with zeros, high bytes, prefixes of each other and none at all.
KEYS = st.sampled_from([b"", b"\x00", b"a", b"a\x00", b"aa", b"b", b"\xff", b"\xff\xff"]) | st.binary(max_size=3)
CHANGES = st.lists(
    st.lists(st.tuples(KEYS, st.booleans(), st.integers(-(2**63), 2**63 - 1)), max_size=4), min_size=1, max_size=25
)


def sqlite_at(path: Path | str) -> SQLBackend:
    """A backend on the file at ``path``."""
    return SQLBackend(SQLite(make_url(f"sqlite:///{path}")))


class SQLiteFile:
    """Mixed into a test: a database file of its own."""

    def setUp(self) -> None:
        """Name the file."""
        self.path = Path(self.mktemp()).absolute()
        super().setUp()

    def make_backend(self) -> Backend:
        """A backend on that file, not opened."""
        return sqlite_at(self.path)


class SQLiteBackendTests(SQLiteFile, BackendContract, SynchronousTestCase):
    """The contract, on a file of SQLite."""


class EagerIndexTests(SQLiteFile, BackendContract, SynchronousTestCase):
    """The contract, with the index by key brought up to date in every write of two rows and more."""

    def setUp(self) -> None:
        """Make the index due at once."""
        self.patch(sql, "INDEX_EVERY_ROWS", 2)
        super().setUp()

    def test_index_is_written_with_the_rows(self) -> None:
        """A reopened database knows how far its index goes, and that nothing more is due."""
        self.write(put(1, b"a"), put(2, b"b"), put(3, b"a"))
        self.backend.close()
        with sqlite3.connect(self.path) as connection:
            indexed = connection.execute("SELECT key, revision FROM key_revisions").fetchall()
        connection.close()
        self.assertEqual(indexed, [(b"a", pack(1)), (b"a", pack(3)), (b"b", pack(2))])


class SQLBackendTests(SQLiteFile, SynchronousTestCase):
    """What the seam does not say, and SQL brings with it."""

    def test_lagging_index_is_completed_after_reopening(self) -> None:
        """Rows that were not indexed when the member stopped are found by key after it started again."""
        backend = self.make_backend()
        backend.open()
        backend.write(Batch([put(1, b"a"), put(2, b"b"), tombstone(3, b"c")]))
        backend.range_at(b"a", None, EVERYTHING)  # indexes these three
        backend.compact(3, 0, 10)  # drops the newest one that is indexed
        backend.write(Batch([put(4, b"a"), put(5, b"d")]))
        backend.close()
        backend = self.make_backend()
        backend.open()
        self.addCleanup(backend.close)
        self.assertEqual(backend.range_at(b"", FROM_KEY, EVERYTHING), [put(4, b"a"), put(2, b"b"), put(5, b"d")])

    def test_refused_batch_with_index_due(self) -> None:
        """A batch that is refused while the index is due leaves the index as it was."""
        self.patch(sql, "INDEX_EVERY_ROWS", 2)
        backend = self.make_backend()
        backend.open()
        self.addCleanup(backend.close)
        backend.write(Batch([put(1, b"a"), put(2, b"b")]))
        self.assertRaises(BackendError, backend.write, Batch([put(3, b"c"), put(2, b"c"), put(4, b"c")]))
        backend.write(Batch([put(3, b"a"), put(4, b"b")]))
        self.assertEqual(backend.range_at(b"", FROM_KEY, EVERYTHING), [put(3, b"a"), put(4, b"b")])

    def test_full_database_takes_the_same_batch_later(self) -> None:
        """A full disk refuses the batch in one line naming the database; the same batch is taken when there is room."""
        backend = sqlite_at(self.path)
        backend.open()
        self.addCleanup(backend.close)
        backend.write(Batch([put(1, b"before")]))
        connection = backend._connection
        assert connection is not None
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        batch = Batch([put(main, b"key", bytes(1_000)) for main in range(2, 300)], {(Bucket.META, b"applied"): b"9"})
        for _ in range(2):
            error = self.assertRaises(BackendError, backend.write, batch)
            self.assertEqual(str(error), f"sqlite:///{self.path}: database or disk is full")
            self.assertEqual(backend.scan(0, EVERYTHING, 1_000), [put(1, b"before")])
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        backend.write(batch)
        self.assertEqual(backend.scan(0, EVERYTHING, 1_000), [put(1, b"before"), *batch.rows])
        self.assertEqual(backend.records(Bucket.META), {b"applied": b"9"})

    def test_calls_on_a_closed_backend(self) -> None:
        """Using a backend that is not open is our own fault, not the database's."""
        self.assertRaises(InvariantError, self.make_backend().scan, 0, 1, 1)

    def test_opening_again_after_a_failure(self) -> None:
        """A backend that could not be opened can be opened when the reason is gone."""
        first, second = self.make_backend(), self.make_backend()
        first.open()
        self.assertRaises(BackendError, second.open)
        first.close()
        second.open()
        second.write(Batch([put(1, b"key")]))
        second.close()

    def test_file_that_is_no_database(self) -> None:
        """A file of something else is refused by name, in one line, and left as it is."""
        self.path.write_bytes(b"something else entirely\n" * 100)
        error = self.assertRaises(BackendError, self.make_backend().open)
        self.assertEqual(str(error), f"sqlite:///{self.path}: file is not a database")
        self.assertEqual(self.path.read_bytes(), b"something else entirely\n" * 100)

    def test_missing_directory(self) -> None:
        """A database in a directory that does not exist is refused by name."""
        error = self.assertRaises(BackendError, sqlite_at(self.path / "none.db").open)
        self.assertEqual(str(error), f"sqlite:///{self.path}/none.db: unable to open database file")

    @settings(max_examples=40, deadline=None)
    @given(CHANGES, st.integers(0, 30), st.integers(0, 30), st.integers(1, 5), KEYS, KEYS)
    def test_agrees_with_the_reference(
        self,
        changes: list[list[tuple[bytes, bool, int]]],
        compacted: int,
        at: int,
        limit: int,
        key: bytes,
        range_end: bytes,
    ) -> None:
        """For any history SQLite answers every question as the reference does, before, during and after compaction."""
        with TemporaryDirectory() as directory:
            ours, reference = sqlite_at(f"{directory}/test.db"), MemoryBackend()
            ours.open()
            try:
                for main, rows in enumerate(changes, 1):
                    batch = Batch([_row(main, sub, *row) for sub, row in enumerate(rows)])
                    ours.write(batch)
                    reference.write(batch)
                after = 0
                for _ in range(1_000):
                    for end in (None, FROM_KEY, range_end):
                        wanted = reference.range_at(key, end, pack(at))
                        self.assertEqual(ours.range_at(key, end, pack(at)), wanted)
                    self.assertEqual(
                        ours.scan(pack(at), EVERYTHING, limit), reference.scan(pack(at), EVERYTHING, limit)
                    )
                    self.assertEqual(
                        ours.surviving(pack(at), EVERYTHING, compacted, 100),
                        reference.surviving(pack(at), EVERYTHING, compacted, 100),
                    )
                    step = ours.compact(compacted, after, limit)
                    self.assertEqual(step, reference.compact(compacted, after, limit))
                    after = step[1]
                    if after == 0:
                        break
                self.assertEqual(ours.scan(0, EVERYTHING, 1_000), reference.scan(0, EVERYTHING, 1_000))
            finally:
                ours.close()


class MigrationCase:
    """Mixed into a test with a backend: a database of before the v2 store."""

    def test_version_1_gets_a_directory(self) -> None:
        """It has the v2 store's tables afterwards, and everything that it had; it is brought up to date once."""
        assert isinstance(self, SynchronousTestCase)
        new = {Bucket.DIRECTORY.value, Bucket.DIRECTORY_EVENTS.value}
        before = MetaData()
        for table in metadata.tables.values():
            if table.name not in new:
                table.to_metadata(before)
        engine = self.make_engine()
        self.addCleanup(engine.dispose)
        with engine.connect() as connection, connection.begin():
            before.create_all(connection)
            connection.execute(insert(schema_version).values(version=1))
            connection.execute(insert(buckets[Bucket.MEMBERS]).values(key=b"id", value=b"member"))
            self.assertFalse(new & set(inspect(connection).get_table_names()))
        node = {b"/1": b"node"}
        for found in ({}, node):
            backend = self.make_backend()
            backend.open()
            self.addCleanup(backend.close)
            self.assertEqual(backend.records(Bucket.MEMBERS), {b"id": b"member"})
            self.assertEqual(backend.records(Bucket.DIRECTORY), found)
            self.assertEqual(backend.records(Bucket.DIRECTORY_EVENTS), {})
            backend.write(Batch(records={(Bucket.DIRECTORY, b"/1"): b"node"}))
            backend.close()
        with engine.connect() as connection:
            versions = connection.execute(select(schema_version.c.version)).scalars().all()
        self.assertEqual(versions, [VERSION])

    def make_engine(self) -> Engine:
        """A connection to the same database."""
        raise NotImplementedError

    def make_backend(self) -> Backend:
        """A backend on that database, not opened."""
        raise NotImplementedError


class SQLiteMigrationTests(SQLiteFile, MigrationCase, SynchronousTestCase):
    """On SQLite."""

    def make_engine(self) -> Engine:
        """A connection of the test's own."""
        return create_engine(f"sqlite:///{self.path}")


class SchemaTests(SQLiteFile, SynchronousTestCase):
    """A database of another release."""

    def test_newer_schema_is_refused(self) -> None:
        """A database that a newer release wrote is refused in one line, and not changed."""
        self._opened_once()
        with sqlite3.connect(self.path) as connection:
            connection.execute("UPDATE schema_version SET version = ?", (VERSION + 1,))
        connection.close()
        error = self.assertRaises(BackendError, self.make_backend().open)
        self.assertEqual(
            str(error),
            f"sqlite:///{self.path}: written by a newer release (schema {VERSION + 1}; this one knows {VERSION})",
        )

    def test_older_schema_is_migrated_step_by_step(self) -> None:
        """An older database goes through each migration once, in order, and then has the new version."""
        self._opened_once()

        def add_colour(connection: Connection) -> None:
            connection.execute(text("ALTER TABLE members ADD COLUMN colour TEXT DEFAULT 'none'"))

        def paint(connection: Connection) -> None:
            connection.execute(text("UPDATE members SET colour = 'blue'"))

        engine = SQLite(make_url(f"sqlite:///{self.path}")).engine()
        self.addCleanup(engine.dispose)
        with engine.connect() as connection:
            for _ in range(2):  # the second time there is nothing to do
                bring_up_to_date(connection, VERSION + 2, {VERSION + 1: add_colour, VERSION + 2: paint})
            members = connection.execute(text("SELECT * FROM members")).all()
            version = connection.execute(text("SELECT version FROM schema_version")).scalars().all()
        self.assertEqual(members, [(b"id", b"member", "blue")])
        self.assertEqual(version, [VERSION + 2])

    def _opened_once(self) -> None:
        backend = self.make_backend()
        backend.open()
        backend.write(Batch(records={(Bucket.MEMBERS, b"id"): b"member"}))
        backend.close()


def _row(main: int, sub: int, key: bytes, deletes: bool, lease: int) -> RevisionRow:
    return tombstone(main, key, sub=sub) if deletes else put(main, key, b"%d" % main, sub=sub, lease=lease)
