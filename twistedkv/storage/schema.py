"""The tables, once for every database, and how a database of an older version becomes one of ours.

``key_revisions`` is what an index on ``revisions (key, revision)`` would be, as a table of its own, because it may lag:
an index costs one page at a random place for every row written, which is three quarters of the CPU and nine tenths of
the bytes that a put costs the database. The table is brought up to date in bulk, in key order, after some ten thousand
rows or when somebody asks by key; see :mod:`twistedkv.storage.sql`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    func,
    insert,
    inspect,
    literal_column,
    select,
    update,
)

from twistedkv.storage.backend import BackendError, Bucket

VERSION = 2
Migration = Callable[[Connection], None]

# A B-tree entry of PostgreSQL holds at most 2,704 bytes, and a key up to 1 MiB: there only the head is indexed.
HEAD_BYTES = 1024


def head(key: ColumnElement[bytes]) -> ColumnElement[bytes]:
    """The part of ``key`` that PostgreSQL indexes, in words that its planner recognises: constants, no parameters."""
    return func.substring(key, literal_column("1"), literal_column(str(HEAD_BYTES)))


metadata = MetaData()

revisions = Table(
    "revisions",
    metadata,
    # SQLite's INTEGER PRIMARY KEY is the rowid itself, so that rows lie in revision order and need no second B-tree.
    Column("revision", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("key", LargeBinary, nullable=False),
    Column("create_revision", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("lease", BigInteger, nullable=False),
    Column("value", LargeBinary, nullable=False),
    Column("tombstone", Boolean, nullable=False),
)

key_revisions = Table(
    "key_revisions",
    metadata,
    Column("key", LargeBinary, nullable=False),
    Column("revision", BigInteger, nullable=False),
    PrimaryKeyConstraint("key", "revision").ddl_if(dialect="sqlite"),
    sqlite_with_rowid=False,
)
Index("key_revisions_head", head(key_revisions.c.key), key_revisions.c.revision).ddl_if(dialect="postgresql")

buckets: Mapping[Bucket, Table] = {
    bucket: Table(
        bucket.value,
        metadata,
        Column("key", LargeBinary, primary_key=True),
        Column("value", LargeBinary, nullable=False),
    )
    for bucket in Bucket
}

STATE = (revisions, key_revisions, *buckets.values())  # everything but what describes the database itself

schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))


def _add_directory(connection: Connection) -> None:
    """The v2 store has tables of its own; what there was before stays as it is."""
    metadata.create_all(connection, [buckets[Bucket.DIRECTORY], buckets[Bucket.DIRECTORY_EVENTS]])


# The version that a step leads to; each starts from the version before.
MIGRATIONS: Mapping[int, Migration] = {2: _add_directory}


def bring_up_to_date(
    connection: Connection, version: int = VERSION, migrations: Mapping[int, Migration] = MIGRATIONS
) -> None:
    """Create the tables in an empty database, or migrate an older one step by step. Runs in the caller's transaction.

    Raises:
        BackendError: the database was written by a newer release.
    """
    if not inspect(connection).has_table(schema_version.name):
        metadata.create_all(connection)
        connection.execute(insert(schema_version).values(version=version))
        return
    found = connection.execute(select(schema_version.c.version)).scalar_one()
    if found > version:
        database = connection.engine.url.render_as_string(hide_password=True)
        raise BackendError(f"{database}: written by a newer release (schema {found}; this one knows {version})")
    for step in range(found + 1, version + 1):
        migrations[step](connection)
        connection.execute(update(schema_version).values(version=step))
