"""``sqlite:///relative/path`` and ``sqlite:////absolute/path``: a file of this member alone."""

from __future__ import annotations

from twisted.plugin import IPlugin
from zope.interface import implementer

from twistedkv.interfaces import IStoragePlugin
from twistedkv.storage.backend import Backend
from twistedkv.storage.dialects import SQLite
from twistedkv.storage.sql import SQLBackend, parse_url


@implementer(IPlugin, IStoragePlugin)
class SQLitePlugin:
    """Makes an :class:`~twistedkv.storage.sql.SQLBackend` on SQLite."""

    schemes = ("sqlite",)
    example = "sqlite:///path/of/the/file.db"

    def make(self, url: str) -> Backend:
        """A backend on the file that the URL's path names."""
        parsed = parse_url(url)
        if parsed.host or not parsed.database or parsed.database == ":memory:":
            raise ValueError("it names no file; three slashes come before a relative path, four begin an absolute one")
        if parsed.query:
            raise ValueError("it takes no parameters")
        return SQLBackend(SQLite(parsed.set(drivername="sqlite")))


sqlite = SQLitePlugin()
