"""Storage URLs and the plugins that answer to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from twistedkv.interfaces import IStoragePlugin
from twistedkv.plugins.memory import memory
from twistedkv.plugins.postgresql import postgresql
from twistedkv.plugins.sqlite import sqlite
from twistedkv.storage.backend import Backend, Batch
from twistedkv.storage.contract import EVERYTHING, put
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.registry import backend_for, open_backend, without_password
from twistedkv.storage.sql import SQLBackend


@implementer(IStoragePlugin)
@dataclass
class ThirdParty:
    """A plugin of someone else's."""

    schemes: tuple[str, ...] = ("other",)
    example: str = "other://place"
    made: list[str] = field(default_factory=list)

    def make(self, url: str) -> Backend:
        """Remember the URL."""
        self.made.append(url)
        return MemoryBackend()


third_party = ThirdParty()  # found by the entry point below
OTHER = EntryPoint("other", f"{__name__}:third_party", "twistedkv.storage")


class OpenBackendTests(SynchronousTestCase):
    """From a URL to a backend."""

    def complaint(self, url: str) -> str:
        """What is said of a wrong URL."""
        complaint = str(self.assertRaises(ValueError, open_backend, url))
        self.assertEqual(len(complaint.splitlines()), 1)
        return complaint

    def test_messages_show_no_password(self) -> None:
        """What an operator reads of a URL is scheme, host and path."""
        for url, shown in (
            ("postgresql+psycopg://me:secret@db:5432/kv?password=secret", "postgresql+psycopg://db:5432/kv"),
            ("sqlite:////var/lib/a@b/kv.db", "sqlite:////var/lib/a@b/kv.db"),
        ):
            self.assertEqual(without_password(url), shown)

    def test_memory(self) -> None:
        """``memory:`` is a backend that keeps nothing."""
        self.assertIsInstance(open_backend("memory:"), MemoryBackend)

    def test_sqlite_makes_the_file(self) -> None:
        """``sqlite:///path`` is a file, which is made when the backend is opened and not before."""
        path = Path(self.mktemp())
        for url in (f"sqlite:///{path}", f"sqlite:///{path.absolute()}", f"SQLite:///{path}"):
            backend = open_backend(url)
            self.assertFalse(path.exists())
            backend.open()
            backend.write(Batch([put(1, b"key")]))
            self.assertTrue(path.exists())
            self.assertEqual(backend.scan(0, EVERYTHING, 10), [put(1, b"key")])
            backend.close()
            path.unlink()

    def test_postgresql_by_both_names(self) -> None:
        """``postgresql`` means psycopg, as ``postgresql+psycopg`` does; nothing connects yet."""
        for scheme in ("postgresql", "postgresql+psycopg"):
            self.assertIsInstance(open_backend(f"{scheme}://user:secret@nowhere.invalid/kv"), SQLBackend)

    def test_unknown_scheme(self) -> None:
        """An unknown scheme is answered with the ones there are."""
        self.assertEqual(
            self.complaint("bolt:///var/lib/kv"),
            "no storage for URLs bolt:…; there are"
            " memory:, postgresql://user@host/database, sqlite:///path/of/the/file.db",
        )

    def test_no_scheme(self) -> None:
        """A path is not a URL, and the complaint says what one looks like."""
        self.assertIn("sqlite:///path/of/the/file.db", self.complaint("/var/lib/kv.db"))

    def test_broken_urls(self) -> None:
        """A URL that its plugin cannot use is one line that says what would be right, and shows no password."""
        for url in (
            "sqlite:",
            "sqlite://",
            "sqlite:///",
            "sqlite://file.db",
            "sqlite:///:memory:",
            "sqlite:///file.db?mode=secret",
            "memory:secret",
            "postgresql://user:secret@host",
            "postgresql://user:secret@host:port/kv",
            "postgresql:user:secret",
            "secret",
        ):
            complaint = self.complaint(url)
            self.assertIn("///path/of/the/file.db" if url[0] == "s" else ":", complaint)
            self.assertNotIn("secret", complaint)

    def test_third_party_plugin(self) -> None:
        """A plugin object is found by its scheme, an entry point by its name, and a plugin object comes first."""
        plugin = ThirdParty()
        backend_for("other://a", [memory, plugin], [])
        self.assertEqual(plugin.made, ["other://a"])
        third_party.made.clear()
        backend_for("Other://b", [memory], [OTHER])
        self.assertEqual(third_party.made, ["Other://b"])
        backend_for("other://c", [plugin], [OTHER])
        self.assertEqual((plugin.made, third_party.made), (["other://a", "other://c"], ["Other://b"]))

    def test_entry_points_are_named_in_complaints(self) -> None:
        """The complaint about an unknown scheme names what entry points there are, without loading them."""
        broken = EntryPoint("broken", "no.such.module:plugin", "twistedkv.storage")
        complaint = str(self.assertRaises(ValueError, backend_for, "bolt:", [memory], [broken]))
        self.assertEqual(complaint, "no storage for URLs bolt:…; there are memory:, broken:…")

    def test_plugins_provide_the_interface(self) -> None:
        """Ours provide what a third party's must."""
        for plugin in (memory, sqlite, postgresql, third_party):
            self.assertTrue(verifyObject(IStoragePlugin, plugin))
