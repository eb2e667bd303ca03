"""``postgresql://user:password@host:port/database``: a database of this member alone, on a server."""

from __future__ import annotations

from twisted.plugin import IPlugin
from zope.interface import implementer

from twistedkv.interfaces import IStoragePlugin
from twistedkv.storage.backend import Backend
from twistedkv.storage.dialects import PostgreSQL
from twistedkv.storage.sql import SQLBackend, parse_url


@implementer(IPlugin, IStoragePlugin)
class PostgreSQLPlugin:
    """Makes an :class:`~twistedkv.storage.sql.SQLBackend` on PostgreSQL through psycopg."""

    schemes = ("postgresql", "postgresql+psycopg")
    example = "postgresql://user@host/database"

    def make(self, url: str) -> Backend:
        """A backend on the database that the URL names; its query goes to libpq, ``sslmode`` for instance."""
        parsed = parse_url(url)
        if not parsed.database:
            raise ValueError("it names no database")
        return SQLBackend(PostgreSQL(parsed.set(drivername="postgresql+psycopg")))


postgresql = PostgreSQLPlugin()
