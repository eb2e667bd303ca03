"""What differs between databases: how to connect and lock, upsert, compare long keys, sync, measure and shrink.

Statements in here are outside of any transaction: connections are in the driver's autocommit mode, and
:mod:`twistedkv.storage.sql` says BEGIN where it means it.
"""

from __future__ import annotations

import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Insert,
    NullPool,
    Table,
    and_,
    create_engine,
    delete,
    event,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from twistedkv.storage.backend import BackendError, Size
from twistedkv.storage.schema import head, metadata, schema_version

CACHE_KIB = 16 * 1024
CHECKPOINT_PAGES = 4000  # 16 MB; a page that was written often in between goes to the database file once
WAL_LIMIT_BYTES = 32 * 1024 * 1024  # what stays of the -wal file after one huge transaction
INCREMENTAL = 2  # the auto_vacuum mode in which free pages are given back when asked for
PAGES_MOVED = 1000  # in one call of defragment(): about 20 ms
ADVISORY_LOCK = 0x7477_6B76  # "twkv"; PostgreSQL keeps advisory locks per database


class Dialect(ABC):
    """One kind of database.

    Args:
        url: where it is, with SQLAlchemy's driver name.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.shown = url.render_as_string(hide_password=True)  # for messages

    def engine(self) -> Engine:
        """Makes connections in autocommit mode, each set up and locked before its first use, again after a loss."""
        # "format" and "qmark" are positional: rows are handed to the driver as the tuples they are.
        engine = create_engine(
            self.url,
            isolation_level="AUTOCOMMIT",
            poolclass=NullPool,
            paramstyle=self.paramstyle,
            connect_args=self.connect_args,
        )
        event.listen(engine, "connect", lambda connection, _record: self.on_connect(connection))
        return engine

    paramstyle: str
    connect_args: dict[str, Any]

    @abstractmethod
    def on_connect(self, connection: Any) -> None:
        """Set up a new connection of the driver and take the database's lock.

        Raises:
            BackendError: another process has the lock.
        """

    @abstractmethod
    def upsert(self, table: Table) -> Insert:
        """An INSERT of (key, value) that replaces the record with an equal key."""

    def parts(self, key: ColumnElement[bytes]) -> tuple[ColumnElement[bytes], ...]:
        """What to compare instead of ``key`` so that the database finds it by its index; equal when the keys are."""
        return (key,)

    def equal(self, key: ColumnElement[bytes], other: ColumnElement[bytes]) -> ColumnElement[bool]:
        """``key == other``, by the index."""
        return and_(*(mine == its for mine, its in zip(self.parts(key), self.parts(other), strict=True)))

    def at_least(self, key: ColumnElement[bytes], first: ColumnElement[bytes]) -> ColumnElement[bool]:
        """``key >= first``, by the index."""
        return and_(*(mine >= its for mine, its in zip(self.parts(key), self.parts(first), strict=True)))

    def before(self, key: ColumnElement[bytes], end: ColumnElement[bytes]) -> ColumnElement[bool]:
        """``key < end``, by the index: a head that is equal says nothing yet."""
        return and_(*(mine <= its for mine, its in zip(self.parts(key), self.parts(end), strict=True)), key < end)

    def empty(self, connection: Connection, tables: Sequence[Table]) -> None:
        """Delete all rows of ``tables``, within the transaction that is open."""
        for table in tables:
            connection.execute(delete(table))

    @abstractmethod
    def sync(self, connection: Connection) -> None:
        """Return when all that was committed is durable."""

    @abstractmethod
    def size(self, connection: Connection) -> Size:
        """See :meth:`~twistedkv.storage.backend.Backend.size`."""

    @abstractmethod
    def defragment(self, connection: Connection) -> bool:
        """See :meth:`~twistedkv.storage.backend.Backend.defragment`."""

    def explain(self, error: Exception) -> str:
        """One line for the operator."""
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        return f"{self.shown}: {self._reason(cause)}"

    def _reason(self, cause: BaseException) -> str:
        return " ".join(str(cause).split()) or type(cause).__name__


class SQLite(Dialect):
    """A file of ours alone.

    Commits are not synced: in WAL mode with ``synchronous=NORMAL`` a power cut takes back the last ones, in order, and
    never tears one (https://www.sqlite.org/pragma.html#pragma_synchronous). The Raft log replays what was taken back.
    """

    paramstyle = "qmark"
    connect_args = {"timeout": 0}  # whoever has the lock keeps it; waiting is no use

    def on_connect(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # before the first access: then no -shm file is needed
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        if not pages:  # before anything is written to a new file; on an old one it would be a write
            connection.execute(f"PRAGMA auto_vacuum = {INCREMENTAL}")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()  # takes the lock
        if mode != "wal":
            connection.close()
            raise BackendError(f"{self.shown}: the file system does not support SQLite's WAL mode")
        for pragma in (
            "synchronous = NORMAL",
            f"cache_size = -{CACHE_KIB}",
            "secure_delete = OFF",  # some builds overwrite what is deleted, which doubles the writes of compaction
            f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
            f"journal_size_limit = {WAL_LIMIT_BYTES}",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()

    def upsert(self, table: Table) -> Insert:
        statement = sqlite.insert(table)
        return statement.on_conflict_do_update(index_elements=["key"], set_={"value": statement.excluded.value})

    def sync(self, connection: Connection) -> None:
        # Syncs the -wal file, moves its pages into the database file and syncs that. What one huge transaction has made
        # of the -wal file is cut off at once, for it counts as a part of the database.
        self._checkpoint(connection, "TRUNCATE" if self._wal_bytes() > WAL_LIMIT_BYTES else "FULL")

    def size(self, connection: Connection) -> Size:
        page_bytes, pages, free = (
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("page_size", "page_count", "freelist_count")
        )
        return Size(pages * page_bytes + self._wal_bytes(), (pages - free) * page_bytes)

    def defragment(self, connection: Connection) -> bool:
        # Pages from the end of the file go where free ones are, some thousand a call. VACUUM, which writes everything
        # anew and lets nobody in meanwhile, is for a file that was made before it was told to keep what that needs.
        if connection.exec_driver_sql("PRAGMA auto_vacuum").scalar_one() != INCREMENTAL:
            connection.exec_driver_sql(f"PRAGMA auto_vacuum = {INCREMENTAL}")
            connection.exec_driver_sql("VACUUM")
        free = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
        driver: Any = connection.connection.driver_connection
        # Each page is a step of this statement; of the driver's methods only this one takes all of them.
        driver.executescript(f"PRAGMA incremental_vacuum({PAGES_MOVED})")
        if free > PAGES_MOVED:
            return False
        self._checkpoint(connection, "TRUNCATE")  # the file ends where it did before until the -wal file is moved in
        return True

    def _checkpoint(self, connection: Connection, mode: str) -> None:
        busy, _, _ = connection.exec_driver_sql(f"PRAGMA wal_checkpoint({mode})").one()
        if busy:
            raise BackendError(f"{self.shown}: the checkpoint is blocked by another connection")

    def _wal_bytes(self) -> int:
        try:
            return os.stat(f"{self.url.database}-wal").st_size
        except FileNotFoundError:
            return 0  # nothing was written since the database was opened

    def _reason(self, cause: BaseException) -> str:
        if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            return "another process uses this database"
        return super()._reason(cause)


class PostgreSQL(Dialect):
    """A database on a server, through psycopg. The index holds no more than the head of a key."""

    paramstyle = "format"
    connect_args = {"connect_timeout": 10}

    def on_connect(self, connection: Any) -> None:
        # As with SQLite: a crash of the server loses the last commits at most, and the Raft log has them.
        connection.execute("SET synchronous_commit = off")
        (locked,) = connection.execute("SELECT pg_try_advisory_lock(%s)", (ADVISORY_LOCK,)).fetchone()
        if not locked:
            connection.close()
            raise BackendError(f"{self.shown}: another member uses this database")

    def upsert(self, table: Table) -> Insert:
        statement = postgresql.insert(table)
        return statement.on_conflict_do_update(index_elements=["key"], set_={"value": statement.excluded.value})

    def parts(self, key: ColumnElement[bytes]) -> tuple[ColumnElement[bytes], ...]:
        return head(key), key

    def empty(self, connection: Connection, tables: Sequence[Table]) -> None:
        # New files take the place of the old ones when the transaction commits: DELETE would leave every row, dead, for
        # a later vacuum, and the tables twice as large.
        names = ", ".join(f'"{table.name}"' for table in tables)
        connection.exec_driver_sql(f"TRUNCATE {names}")

    def sync(self, connection: Connection) -> None:
        # A synchronous commit flushes the log up to itself, but only when its transaction wrote something.
        connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
        connection.exec_driver_sql(f"UPDATE {schema_version.name} SET version = version")
        connection.commit()

    def size(self, connection: Connection) -> Size:
        # The room of deleted rows is used again, and how much of it is free only a look at every page would tell.
        total = connection.exec_driver_sql(
            "SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_stat_user_tables"
            " WHERE schemaname = current_schema() AND relname = ANY(%s)",
            ([table.name for table in metadata.sorted_tables],),
        ).scalar_one()
        return Size(total, total)

    def defragment(self, connection: Connection) -> bool:
        for table in metadata.sorted_tables:
            connection.exec_driver_sql(f'VACUUM FULL "{table.name}"')
        return True
