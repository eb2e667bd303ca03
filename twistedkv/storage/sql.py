"""The storage seam on SQLAlchemy Core. Rows stop here; what differs between databases is in ``dialects``.

Every row goes into ``revisions`` at once. ``key_revisions``, by which rows are found by key, follows in bulk: see
:mod:`twistedkv.storage.schema` for why. So every question that goes by key calls :meth:`SQLBackend._catch_up` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain

from sqlalchemy import (
    URL,
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    CursorResult,
    Engine,
    Integer,
    LargeBinary,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    make_url,
    not_,
    or_,
    select,
    tuple_,
)
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from twistedkv.errors import InvariantError
from twistedkv.storage.backend import BackendError, Batch, Bucket, RevisionRow, Size, pack
from twistedkv.storage.dialects import Dialect
from twistedkv.storage.schema import STATE, bring_up_to_date, buckets, key_revisions, revisions

# Rows in one INSERT, largest first. A driver lets other threads run once a statement, and each such hand-over costs
# more than the row when the reactor is busy. 128 rows are 896 parameters; SQLite before 3.32 took 999.
ROWS_PER_INSERT = (128, 32, 8, 1)
RECORDS_PER_STATEMENT = (128, 16, 1)  # likewise: a batch may bring thousands of one bucket
REVISIONS_PER_SELECT = 500
INDEX_EVERY_ROWS = 50_000  # how far key_revisions may lag: about 100 ms of work
FROM_KEY = b"\0"  # as range_end: every key from the first one on


class SQLBackend:
    """A :class:`~twistedkv.storage.backend.Backend` in an SQL database.

    Args:
        dialect: the kind of database, and where it is.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._statements = Statements(dialect)
        self._engine: Engine | None = None
        self._connection: Connection | None = None
        self._inserts: dict[int, str] = {}
        self._upserts: dict[tuple[Bucket, int], str] = {}  # by how many records they write
        self._deletes: dict[tuple[Bucket, int], str] = {}
        self._newest = 0  # the last revision written
        self._indexed = 0  # key_revisions is complete up to this revision
        self._unindexed_rows = 0  # rows after it

    def open(self) -> None:
        """Connect, lock, migrate, and learn how far ``key_revisions`` got."""
        try:
            self._engine = self._dialect.engine()
            self._connection = self._engine.connect()
            self._compile(self._engine)
            with self._transaction() as connection:
                bring_up_to_date(connection)
                self._find_ends(connection)
        except ModuleNotFoundError as error:
            raise BackendError(f"{self._dialect.shown}: the database driver {error.name} is not installed") from error
        except SQLAlchemyError as error:
            self.close()
            raise BackendError(self._dialect.explain(error)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Disconnect, which gives the lock back. Closing twice is allowed."""
        connection, self._connection = self._connection, None
        engine, self._engine = self._engine, None
        if connection is not None:
            with suppress(SQLAlchemyError):  # the database is gone already: so is the connection
                connection.close()
        if engine is not None:
            engine.dispose()

    def write(self, batch: Batch) -> None:
        """Apply ``batch`` in one transaction, with ``key_revisions`` when it is due."""
        rows = batch.rows
        due = self._unindexed_rows + len(rows) >= INDEX_EVERY_ROWS
        with self._transaction() as connection:
            self._insert_rows(connection, rows)
            self._write_records(connection, batch)
            if due:
                connection.execute(self._statements.index, {"indexed": self._indexed})
        self._newest = rows[-1].revision if rows else self._newest
        self._unindexed_rows += len(rows)
        if due:
            self._mark_indexed()

    def replace(self, batches: Iterable[Batch]) -> None:
        """Empty the tables and fill them again, in one transaction; ``key_revisions`` at the end and at once, which
        sorts it, so that it is written from its first page to its last."""
        newest = 0
        with self._transaction() as connection:
            self._dialect.empty(connection, STATE)
            for batch in batches:
                self._insert_rows(connection, batch.rows)
                self._write_records(connection, batch)
                newest = batch.rows[-1].revision if batch.rows else newest
            connection.execute(self._statements.index, {"indexed": 0})
        self._newest = newest
        self._mark_indexed()

    def sync(self) -> None:
        """Have the database flush what was committed."""
        with self._refusing() as connection:
            self._dialect.sync(connection)

    def records(self, bucket: Bucket) -> dict[bytes, bytes]:
        """All records of one bucket."""
        table = buckets[bucket]
        with self._refusing() as connection:
            return dict(connection.execute(select(table)).cursor.fetchall())  # of two columns

    def scan(self, first: int, last: int, limit: int) -> list[RevisionRow]:
        """Rows between two revisions, both included, in the order of the primary key."""
        with self._refusing() as connection:
            found = connection.execute(self._statements.scan, {"first": first, "last": last, "limit": limit})
            return _rows_of(found)

    def rows(self, revisions: Sequence[int]) -> list[RevisionRow]:
        """The rows with exactly these revisions, some hundreds a statement."""
        wanted = sorted(set(revisions))
        found: list[RevisionRow] = []
        with self._refusing() as connection:
            for start in range(0, len(wanted), REVISIONS_PER_SELECT):
                some = wanted[start : start + REVISIONS_PER_SELECT]
                found += _rows_of(connection.execute(self._statements.rows, {"wanted": some}))
        return found

    def range_at(self, key: bytes, range_end: bytes | None, last: int) -> list[RevisionRow]:
        """The newest live row of each key as of ``last``."""
        parameters: dict[str, bytes | int] = {"key": key, "last": last}
        if range_end is None:
            statement = self._statements.key_at
        elif range_end == FROM_KEY:
            statement = self._statements.from_key_at
        else:
            statement = self._statements.range_at
            parameters["range_end"] = range_end
        self._catch_up()
        with self._refusing() as connection:
            return _rows_of(connection.execute(statement, parameters))

    def surviving(self, first: int, last: int, compacted: int, limit: int) -> list[RevisionRow]:
        """As :meth:`scan`, without what a compaction at ``last`` would drop of the compacted rows."""
        self._catch_up()
        bounds = {"first": first, "last": last, "compacted": pack(compacted + 1) - 1, "limit": limit}
        with self._refusing() as connection:
            return _rows_of(connection.execute(self._statements.surviving, bounds))

    def compact(self, compacted: int, after: int, limit: int) -> tuple[int, int]:
        """Delete what compaction drops among the next ``limit`` rows, in one transaction."""
        self._catch_up()
        bound = pack(compacted + 1) - 1
        with self._transaction() as connection:
            stop = connection.execute(
                self._statements.stop, {"after": after, "compacted": bound, "limit": limit}
            ).scalar()
            if stop is None:
                return 0, 0
            bounds = {"after": after, "stop": stop, "compacted": bound}
            connection.execute(self._statements.unindex, bounds)
            return connection.execute(self._statements.drop, {"after": after, "stop": stop}).rowcount, stop

    def size(self) -> Size:
        """What the database takes on disk."""
        with self._refusing() as connection:
            return self._dialect.size(connection)

    def defragment(self) -> bool:
        """Give some of the unused space back; whether that was all."""
        with self._refusing() as connection:
            return self._dialect.defragment(connection)

    def _compile(self, engine: Engine) -> None:
        """Core's text of the statements behind every put, to be run with rows as the tuples they are."""
        placeholders = dict.fromkeys(RevisionRow._fields)
        for count in ROWS_PER_INSERT:
            statement = insert(revisions).values([placeholders] * count)
            self._inserts[count] = str(statement.compile(engine))

    def _upsert(self, bucket: Bucket, count: int) -> str:
        """Core's text of the statement that writes so many records, made when it is needed first."""
        text = self._upserts.get((bucket, count))
        if text is None and self._engine is not None:
            statement = self._dialect.upsert(buckets[bucket]).values([{"key": None, "value": None}] * count)
            text = self._upserts[bucket, count] = str(statement.compile(self._engine))
        return text or ""

    def _delete(self, bucket: Bucket, count: int) -> str:
        """As :meth:`_upsert`, for the statement that deletes so many."""
        text = self._deletes.get((bucket, count))
        if text is None and self._engine is not None:
            table = buckets[bucket]
            wanted = [bindparam(f"key_{number}", type_=LargeBinary) for number in range(count)]
            text = self._deletes[bucket, count] = str(
                delete(table).where(table.c.key.in_(wanted)).compile(self._engine)
            )
        return text or ""

    def _find_ends(self, connection: Connection) -> None:
        self._newest = connection.execute(select(func.max(revisions.c.revision))).scalar() or 0
        # Compaction may have deleted the last rows that were indexed; then those after the maximum still are not.
        self._indexed = connection.execute(select(func.max(key_revisions.c.revision))).scalar() or 0
        behind = select(func.count()).where(revisions.c.revision > self._indexed)
        self._unindexed_rows = connection.execute(behind).scalar_one()

    def _insert_rows(self, connection: Connection, rows: list[RevisionRow]) -> None:
        start = 0
        for count in ROWS_PER_INSERT:
            statement = self._inserts[count]
            while len(rows) - start >= count:
                some = rows[start : start + count]
                connection.exec_driver_sql(statement, tuple(chain.from_iterable(some)))
                start += count

    def _write_records(self, connection: Connection, batch: Batch) -> None:
        written: dict[Bucket, list[tuple[bytes, bytes]]] = {}
        deleted: dict[Bucket, list[tuple[bytes]]] = {}
        for (bucket, key), value in batch.records.items():
            if value is None:
                deleted.setdefault(bucket, []).append((key,))
            else:
                written.setdefault(bucket, []).append((key, value))
        for bucket, records in written.items():
            _execute(connection, partial(self._upsert, bucket), records)
        for bucket, keys in deleted.items():
            _execute(connection, partial(self._delete, bucket), keys)

    def _catch_up(self) -> None:
        """Complete ``key_revisions``, before a question that goes by key."""
        if self._unindexed_rows:
            with self._transaction() as connection:
                connection.execute(self._statements.index, {"indexed": self._indexed})
            self._mark_indexed()

    def _mark_indexed(self) -> None:
        self._indexed, self._unindexed_rows = self._newest, 0

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """All that happens inside happens, or nothing of it."""
        with self._refusing() as connection:
            connection.exec_driver_sql("BEGIN")
            yield connection
            connection.commit()

    @contextmanager
    def _refusing(self) -> Iterator[Connection]:
        """The connection; what goes wrong on it ends the transaction, and the database's own errors become ours."""
        connection = self._connection
        if connection is None:
            raise InvariantError(f"{self._dialect.shown} is not open")
        try:
            yield connection
        except BaseException as error:
            with suppress(SQLAlchemyError):  # a lost connection took the transaction with it
                connection.rollback()
            if isinstance(error, SQLAlchemyError):
                raise BackendError(self._dialect.explain(error)) from error
            raise


class Statements:
    """The questions, built once; Core compiles each on first use and caches the text.

    Args:
        dialect: says how to compare keys.
    """

    def __init__(self, dialect: Dialect) -> None:
        revision, key = revisions.c.revision, revisions.c.key
        first, last, after, stop, compacted = (
            bindparam(name, type_=BigInteger) for name in ("first", "last", "after", "stop", "compacted")
        )
        limit = bindparam("limit", type_=Integer)
        between = and_(revision >= first, revision <= last)
        everything = select(revisions)
        self.scan = everything.where(between).order_by(revision).limit(limit)
        self.rows = everything.where(revision.in_(bindparam("wanted", expanding=True))).order_by(revision)

        newer = key_revisions.alias("newer")
        newer_of_key = exists().where(dialect.equal(newer.c.key, key), newer.c.revision > revision)

        def dropped_at(bound: BindParameter[int]) -> ColumnElement[bool]:
            return or_(revisions.c.tombstone, newer_of_key.where(newer.c.revision <= bound))

        gone = and_(revision <= compacted, dropped_at(last))
        self.surviving = everything.where(between, not_(gone)).order_by(revision).limit(limit)
        self.stop = select(
            func.max(
                select(revision)
                .where(revision > after, revision <= compacted)
                .order_by(revision)
                .limit(limit)
                .subquery()
                .c.revision
            )
        )
        # Rows go after their entries in key_revisions: what is gone from there is what compaction drops.
        indexed_key, indexed_revision = key_revisions.c.key, key_revisions.c.revision
        looked_at = and_(revision > after, revision <= stop)
        superfluous = select(*dialect.parts(key), revision).where(looked_at, dropped_at(compacted))
        self.unindex = delete(key_revisions).where(
            tuple_(*dialect.parts(indexed_key), indexed_revision).in_(superfluous)
        )
        indexed = exists().where(dialect.equal(indexed_key, key), indexed_revision == revision)
        self.drop = delete(revisions).where(looked_at, not_(indexed))
        # In key order, so that one page of the index takes all of its new entries at once.
        self.index = insert(key_revisions).from_select(
            ["key", "revision"],
            select(key, revision).where(revision > bindparam("indexed", type_=BigInteger)).order_by(key, revision),
        )

        start, end = (bindparam(name, type_=LargeBinary) for name in ("key", "range_end"))
        from_start, before_end = dialect.at_least(indexed_key, start), dialect.before(indexed_key, end)
        newest = select(indexed_key, func.max(indexed_revision).label("revision")).where(indexed_revision <= last)
        self.key_at, self.from_key_at, self.range_at = (
            everything.join(found, revision == found.c.revision)
            .where(not_(revisions.c.tombstone))
            .order_by(found.c.key)
            for found in (
                newest.where(condition).group_by(indexed_key).subquery()
                for condition in (dialect.equal(indexed_key, start), from_start, and_(from_start, before_end))
            )
        )


def _execute(connection: Connection, statement: Callable[[int], str], parameters: Sequence[tuple[bytes, ...]]) -> None:
    """Run the statement for so many parameters at a time, until all had their turn."""
    start = 0
    for count in RECORDS_PER_STATEMENT:
        while len(parameters) - start >= count:
            some = parameters[start : start + count]
            connection.exec_driver_sql(statement(count), tuple(chain.from_iterable(some)))
            start += count


def _rows_of(result: CursorResult[*tuple[object, ...]]) -> list[RevisionRow]:
    """The rows of a SELECT of all columns, from the driver's own tuples: Core's row objects cost as much again."""
    return list(map(RevisionRow._make, result.cursor.fetchall()))


def parse_url(url: str) -> URL:
    """``url`` in SQLAlchemy's form.

    Raises:
        ValueError: it has none; the text does not repeat it, for it may hold a password.
    """
    try:
        return make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise ValueError("it cannot be parsed") from None
