"""SQLite and PostgreSQL, each for what only it does."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.dialects import postgresql as postgresql_dialect
from sqlalchemy.schema import CreateIndex, CreateTable
from twisted.trial.unittest import SynchronousTestCase

from tests.storage.postgresql import connect, new_schema
from tests.storage.test_sql import MigrationCase
from twistedkv.storage import sql
from twistedkv.storage.backend import Backend, BackendError, Batch, Bucket, pack
from twistedkv.storage.contract import EVERYTHING, FROM_KEY, BackendContract, put
from twistedkv.storage.dialects import WAL_LIMIT_BYTES, PostgreSQL, SQLite
from twistedkv.storage.schema import key_revisions
from twistedkv.storage.sql import SQLBackend, Statements

OPEN_IN_A_PROCESS = """
import sys
from twistedkv.plugins.sqlite import sqlite
sqlite.make(sys.argv[1]).open()
"""

WRITE_AND_DIE = """
import os, signal, sys
from twistedkv.plugins.sqlite import sqlite
from twistedkv.storage.backend import Batch, Bucket
from twistedkv.storage.contract import put
backend = sqlite.make(sys.argv[1])
backend.open()
for main in range(1, 301):
    backend.write(Batch([put(main, b"key%d" % main)], {(Bucket.META, b"applied"): b"%d" % main}))
os.kill(os.getpid(), signal.SIGKILL)
"""

REPLACE_AND_STOP = """
import sys
from twistedkv.plugins.sqlite import sqlite
from twistedkv.storage.backend import Batch, Bucket
from twistedkv.storage.contract import put
backend = sqlite.make(sys.argv[1])
backend.open()

def batches():
    for number in range(40):
        rows = [put(main, b"new%d" % main, bytes(10_000)) for main in range(1 + number * 100, 101 + number * 100)]
        yield Batch(rows, {(Bucket.META, b"applied"): b"new"})
    print("middle", flush=True)
    sys.stdin.read()  # until it is killed

backend.replace(batches())
"""


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``program`` in a process of its own, with our modules at hand."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )


class SQLiteTests(SynchronousTestCase):
    """The file, its lock and its size."""

    def setUp(self) -> None:
        """Open a database."""
        super().setUp()
        self.path = Path(self.mktemp()).absolute()
        self.url = f"sqlite:///{self.path}"
        self.backend = SQLBackend(SQLite(make_url(self.url)))
        self.backend.open()
        self.addCleanup(self.backend.close)

    def pragma(self, name: str) -> object:
        """What SQLite says of itself."""
        connection = self.backend._connection
        assert connection is not None
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()

    def test_settings(self) -> None:
        """Commits go to a write-ahead log and are not synced one by one; the page cache is bounded by 16 MiB."""
        self.assertEqual(self.pragma("journal_mode"), "wal")
        self.assertEqual(self.pragma("synchronous"), 1)
        self.assertEqual(self.pragma("cache_size"), -16 * 1024)
        self.assertEqual(self.pragma("locking_mode"), "exclusive")

    def test_another_process_is_refused(self) -> None:
        """A second process on the same file is told in one line that the database is in use."""
        tried = run_python(OPEN_IN_A_PROCESS, self.url)
        self.assertNotEqual(tried.returncode, 0)
        self.assertEqual(
            tried.stderr.splitlines()[-1],
            f"twistedkv.storage.backend.BackendError: {self.url}: another process uses this database",
        )

    def test_killed_process_loses_nothing(self) -> None:
        """Every batch that was written when the process was killed is there, and the lock is free."""
        self.backend.close()
        killed = run_python(WRITE_AND_DIE, self.url)
        self.assertEqual((killed.returncode, killed.stderr), (-signal.SIGKILL, ""))
        self.backend.open()
        rows = [put(main, b"key%d" % main) for main in range(1, 301)]
        self.assertEqual(self.backend.scan(0, EVERYTHING, 1_000), rows)
        self.assertEqual(self.backend.range_at(b"key9", None, EVERYTHING), rows[8:9])
        self.assertEqual(self.backend.records(Bucket.META), {b"applied": b"300"})

    def test_killed_in_the_middle_of_a_replacement(self) -> None:
        """A process that is killed when most of a replacement is on the disk leaves the state of before, whole."""
        rows = [put(main, b"key%d" % (main % 90), b"old") for main in range(1, 301)]
        self.backend.write(Batch(rows, {(Bucket.META, b"applied"): b"old"}))
        self.backend.sync()
        self.backend.close()
        with subprocess.Popen(
            [sys.executable, "-c", REPLACE_AND_STOP, self.url],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            try:
                assert process.stdout is not None
                self.assertEqual(process.stdout.readline(), b"middle\n")
            finally:
                process.kill()
        self.assertEqual(process.returncode, -signal.SIGKILL)
        self.assertGreater(Path(f"{self.path}-wal").stat().st_size, 20_000_000)  # 40 MB less the cache
        self.backend.open()
        self.assertEqual(self.backend.scan(0, EVERYTHING, 1_000), rows)
        self.assertEqual(len(self.backend.range_at(b"", FROM_KEY, EVERYTHING)), 90)
        self.assertEqual(self.backend.records(Bucket.META), {b"applied": b"old"})
        self.backend.replace([Batch([put(1, b"new")])])
        self.assertEqual(self.backend.scan(0, EVERYTHING, 1_000), [put(1, b"new")])

    def test_full_disk_in_the_middle_of_a_replacement(self) -> None:
        """Without room for the new state the old one stays, and the same replacement works once there is room."""
        rows = [put(main, b"key%d" % (main % 90), bytes(500)) for main in range(1, 301)]
        self.backend.write(Batch(rows, {(Bucket.META, b"applied"): b"old"}))
        self.assertEqual(len(self.backend.range_at(b"", FROM_KEY, EVERYTHING)), 90)
        pages = self.pragma("page_count")
        connection = self.backend._connection
        assert connection is not None
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        new = [Batch([put(main, b"new%d" % main, bytes(2_000))]) for main in range(1, 301)]
        error = self.assertRaises(BackendError, self.backend.replace, new)
        self.assertEqual(str(error), f"{self.url}: database or disk is full")
        self.assertEqual(self.backend.scan(0, EVERYTHING, 1_000), rows)
        self.assertEqual(len(self.backend.range_at(b"", FROM_KEY, EVERYTHING)), 90)
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        self.backend.replace(new)
        self.assertEqual(self.backend.scan(0, EVERYTHING, 1_000), [batch.rows[0] for batch in new])
        self.assertEqual(self.backend.records(Bucket.META), {})

    def test_replacement_leaves_no_large_log(self) -> None:
        """Once it is synced, the -wal file that it took counts for the size no more."""
        rows = [put(main, b"key%d" % main, bytes(10_000)) for main in range(1, 5_001)]
        self.backend.replace(Batch(rows[start : start + 500]) for start in range(0, 5_000, 500))
        self.assertGreater(self.backend.size().total, 90_000_000)
        self.backend.sync()
        self.assertEqual(self.backend.size().total, self.path.stat().st_size)

    def test_sync_moves_everything_into_the_file(self) -> None:
        """After a sync the database file alone holds every batch."""
        self.backend.write(Batch([put(1, b"key", b"needle in the file")], {(Bucket.META, b"applied"): b"needle too"}))
        self.assertNotIn(b"needle in the file", self.path.read_bytes())
        self.backend.sync()
        self.assertIn(b"needle in the file", self.path.read_bytes())
        self.assertIn(b"needle too", self.path.read_bytes())

    def test_size_counts_the_log(self) -> None:
        """What lies in the -wal file counts; defragmentation truncates it, and the file on disk is as small as said."""
        wal = Path(f"{self.path}-wal")
        self.backend.write(Batch([put(main, b"key%d" % main, bytes(1_000)) for main in range(1, 3_001)]))
        self.assertGreater(self.backend.size().total, 3_000_000 + wal.stat().st_size)
        self.backend.write(Batch([put(main, b"key", b"") for main in range(3_001, 3_003)]))
        self.backend.compact(3_002, 0, 10_000)
        while not self.backend.defragment():
            self.backend.records(Bucket.META)
        self.assertEqual(wal.stat().st_size, 0)
        self.assertEqual(self.backend.size().total, self.path.stat().st_size)

    def test_defragmentation_lets_others_in(self) -> None:
        """A large file shrinks step by step; what is written and read in between is there, and stays."""
        rows = [put(main, b"key%d" % (main % 7), bytes(5_000)) for main in range(1, 5_001)]
        self.backend.write(Batch(rows))
        full = self.backend.size().total
        after = 1
        while after:
            _, after = self.backend.compact(5_000, after, 5_000)
        steps, sizes = 0, []
        while not self.backend.defragment():
            steps += 1
            self.backend.write(Batch([put(5_000 + steps, b"new", b"%d" % steps)]))
            self.assertEqual(len(self.backend.scan(0, EVERYTHING, 100)), 7 + steps)
            sizes.append(self.backend.size().in_use)
        self.assertGreater(steps, 5)
        self.assertLess(self.backend.size().total, full // 20)
        self.assertEqual(self.backend.size().total, self.path.stat().st_size)
        self.assertLess(max(sizes), full // 20)

    def test_a_file_made_without_the_means_to_shrink_is_given_them(self) -> None:
        """A database of before is rewritten once, and then it shrinks like any other."""
        self.backend.close()
        self.path.unlink()
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA auto_vacuum = NONE")
            connection.execute("CREATE TABLE old (data)")
            connection.execute("DROP TABLE old")
        self.backend.open()
        self.backend.write(Batch([put(main, b"key", bytes(5_000)) for main in range(1, 2_001)]))
        after = 1
        while after:
            _, after = self.backend.compact(2_000, after, 5_000)
        while not self.backend.defragment():
            self.backend.records(Bucket.META)
        self.assertLess(self.path.stat().st_size, 200_000)
        self.backend.write(Batch([put(main, b"key", bytes(5_000)) for main in range(2_001, 4_001)]))
        self.backend.compact(4_000, 0, 5_000)
        self.assertFalse(self.backend.defragment())

    def test_log_stays_bounded(self) -> None:
        """The -wal file does not grow with the data for ever."""
        for start in range(1, 12_001, 1_000):
            self.backend.write(Batch([put(main, b"key", bytes(3_000)) for main in range(start, start + 1_000)]))
        self.assertLess(Path(f"{self.path}-wal").stat().st_size, WAL_LIMIT_BYTES)

    def test_damaged_file(self) -> None:
        """A database with damaged pages is an error that names the file, not a crash."""
        self.backend.write(Batch([put(main, b"key%d" % main, bytes(1_000)) for main in range(1, 1_001)]))
        self.backend.close()
        content = bytearray(self.path.read_bytes())
        content[8_192:] = b"\x55" * (len(content) - 8_192)
        self.path.write_bytes(content)

        def use() -> None:
            self.backend.open()
            self.backend.scan(0, EVERYTHING, 10_000)

        self.assertIn(str(self.path), str(self.assertRaises(BackendError, use)))


class PostgreSQLSchema:
    """Mixed into a test: a schema of its own on a real server. Without a server the test is skipped."""

    def setUp(self) -> None:
        """Make the schema."""
        self.url = new_schema()
        super().setUp()

    def make_backend(self) -> Backend:
        """A backend on that schema, not opened."""
        return SQLBackend(PostgreSQL(self.url))


class PostgreSQLBackendTests(PostgreSQLSchema, BackendContract, SynchronousTestCase):
    """The contract, on PostgreSQL."""


class PostgreSQLMigrationTests(PostgreSQLSchema, MigrationCase, SynchronousTestCase):
    """A database of an older release, on PostgreSQL."""

    def make_engine(self) -> Engine:
        """A connection of the test's own."""
        return create_engine(self.url)


class PostgreSQLTests(PostgreSQLSchema, SynchronousTestCase):
    """Locks, lost connections and the head of long keys."""

    def setUp(self) -> None:
        """Open the database, with all keys indexed at once."""
        super().setUp()
        self.patch(sql, "INDEX_EVERY_ROWS", 1)
        self.backend = self.make_backend()
        self.backend.open()
        self.addCleanup(self.backend.close)

    def test_second_member_is_told_why(self) -> None:
        """A second member on the same database is refused in one line without the password."""
        second = SQLBackend(PostgreSQL(self.url.set(password="secret")))
        error = str(self.assertRaises(BackendError, second.open))
        self.assertTrue(error.endswith(": another member uses this database"), error)
        self.assertNotIn("secret", error)

    def test_lost_connection_is_made_anew(self) -> None:
        """A batch that meets a lost connection is refused, and the same batch is taken by the next one."""
        self.backend.write(Batch([put(1, b"a")]))
        with connect(self.url) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        self.assertRaises(BackendError, self.backend.write, Batch([put(2, b"b")]))
        self.backend.write(Batch([put(2, b"b")]))
        self.assertEqual(self.backend.scan(0, EVERYTHING, 10), [put(1, b"a"), put(2, b"b")])
        self.assertRaises(BackendError, self.make_backend().open)  # the lock was taken again

    def test_connection_lost_in_the_middle_of_a_replacement(self) -> None:
        """The state of before is there on the next connection; a replacement on that one is whole."""
        self.backend.write(Batch([put(1, b"a"), put(2, b"b")], {(Bucket.META, b"applied"): b"old"}))

        def batches() -> Iterator[Batch]:
            yield Batch([put(1, b"new")], {(Bucket.META, b"applied"): b"new"})
            with connect(self.url) as connection:
                connection.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
            yield Batch([put(2, b"new")])

        self.assertRaises(BackendError, self.backend.replace, batches())
        self.assertEqual(self.backend.scan(0, EVERYTHING, 10), [put(1, b"a"), put(2, b"b")])
        self.assertEqual(self.backend.records(Bucket.META), {b"applied": b"old"})
        self.backend.replace([Batch([put(1, b"new")])])
        self.assertEqual(self.backend.range_at(b"", FROM_KEY, EVERYTHING), [put(1, b"new")])

    def test_sync_makes_commits_durable(self) -> None:
        """After a sync the server's log is flushed up to the last commit."""
        self.backend.write(Batch([put(main, b"key", bytes(100)) for main in range(1, 100)]))
        with connect(self.url) as connection:
            (before,) = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone() or ("",)
            self.backend.sync()
            flushed = connection.execute("SELECT pg_current_wal_flush_lsn() >= %s::pg_lsn", (before,)).fetchone()
        self.assertEqual(flushed, (True,))

    def test_keys_are_found_by_their_heads(self) -> None:
        """The index by key's head serves every kind of range, and its result is that of the whole keys."""
        rows = [put(main, b"%04d" % (main % 500) * 500) for main in range(1, 1_001)]
        self.backend.write(Batch(rows))
        newest = sorted(rows[500:], key=lambda row: row.key)
        self.assertEqual(self.backend.range_at(b"0100", b"0200", EVERYTHING), newest[100:200])
        self.assertEqual(self.backend.range_at(newest[7].key, FROM_KEY, EVERYTHING), newest[7:])
        connection = self.backend._connection
        assert connection is not None
        asked = self.backend._statements.range_at.compile(connection.engine)
        values = {"key": b"0100", "range_end": b"0200", "last": pack(2_000)}
        connection.exec_driver_sql("ANALYZE")
        plan = connection.exec_driver_sql(f"EXPLAIN {asked}", tuple(values[name] for name in asked.positiontup or ()))
        self.assertIn("Index Cond: ((SUBSTRING(key FROM 1 FOR 1024) >= ", "\n".join(plan.scalars()))


class PostgreSQLTextTests(SynchronousTestCase):
    """What is said to PostgreSQL and of it, where no server is at hand."""

    def test_missing_driver(self) -> None:
        """Without the driver's package the operator is told which one is missing, and no password."""
        backend = SQLBackend(PostgreSQL(make_url("postgresql+pg8000://user:secret@host/database")))
        error = self.assertRaises(BackendError, backend.open)
        shown = "postgresql+pg8000://user:***@host/database"
        self.assertEqual(str(error), f"{shown}: the database driver pg8000 is not installed")

    def test_unreachable_server(self) -> None:
        """A server that is not there is an error of one line that names it, without the password."""
        url = f"postgresql+psycopg://user:secret@/database?host={Path(self.mktemp()).absolute()}"
        error = str(self.assertRaises(BackendError, SQLBackend(PostgreSQL(make_url(url))).open))
        self.assertEqual(len(error.splitlines()), 1)
        self.assertIn("user:***@/database", error)
        self.assertNotIn("secret", error)

    def test_only_the_head_of_a_key_is_indexed(self) -> None:
        """The index holds 1,024 bytes of a key, because an entry of PostgreSQL's takes 2,704 at most."""
        dialect = postgresql_dialect.dialect()
        (index,) = key_revisions.indexes
        self.assertIn("(SUBSTRING(key FROM 1 FOR 1024), revision)", str(CreateIndex(index).compile(dialect=dialect)))
        table = str(CreateTable(key_revisions).compile(dialect=dialect))
        self.assertIn("BYTEA", table)
        self.assertNotIn("PRIMARY KEY", table)

    def test_ranges_name_the_head(self) -> None:
        """A range compares the heads, which the index finds, and then the keys."""
        statements = Statements(PostgreSQL(make_url("postgresql+psycopg://host/database")))
        text = str(statements.range_at.compile(dialect=postgresql_dialect.dialect(paramstyle="named")))
        self.assertIn("SUBSTRING(key_revisions.key FROM 1 FOR 1024) >= SUBSTRING(:key FROM 1 FOR 1024)", text)
        self.assertIn("SUBSTRING(key_revisions.key FROM 1 FOR 1024) <= SUBSTRING(:range_end FROM 1 FOR 1024)", text)
        self.assertIn("key_revisions.key >= :key AND", text)
        self.assertIn("key_revisions.key < :range_end", text)
