"""From a storage URL to a backend: plugins are found by the URL's scheme."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points

from twisted.plugin import getPlugins

from twistedkv import plugins
from twistedkv.interfaces import IStoragePlugin
from twistedkv.storage.backend import Backend

ENTRY_POINTS = "twistedkv.storage"  # the group; an entry point's name is the scheme, its object an IStoragePlugin


def open_backend(url: str) -> Backend:
    """The backend that ``url`` names. It connects later, when the storage worker calls its ``open``.

    Raises:
        ValueError: no plugin takes this URL; one line that says what would be right and shows no password.
    """
    return backend_for(url, getPlugins(IStoragePlugin, plugins), entry_points(group=ENTRY_POINTS))


def backend_for(url: str, found: Iterable[IStoragePlugin], named: Collection[EntryPoint]) -> Backend:
    """As :func:`open_backend`, among these plugins and entry points; of two for one scheme the first is taken."""
    known = list(found)
    scheme, colon, _ = url.partition(":")
    if not colon:
        raise ValueError(f"a storage URL begins with a scheme: {_examples(known)}")
    for plugin in _having(scheme.lower(), known, named):
        try:
            return plugin.make(url)
        except ValueError as error:
            raise ValueError(f"bad storage URL {scheme}:…: {error}, for instance {plugin.example}") from error
    others = "".join(f", {entry.name}:…" for entry in named)
    raise ValueError(f"no storage for URLs {scheme}:…; there are {_examples(known)}{others}")


def without_password(url: str) -> str:
    """A storage URL for messages: no user, no password, no parameters."""
    return re.sub(r"://[^/?]*@", "://", url).partition("?")[0]


def _having(scheme: str, known: list[IStoragePlugin], named: Collection[EntryPoint]) -> Iterator[IStoragePlugin]:
    yield from (plugin for plugin in known if scheme in plugin.schemes)
    yield from (entry.load() for entry in named if entry.name == scheme)  # only now is a third party's code imported


def _examples(known: list[IStoragePlugin]) -> str:
    return ", ".join(sorted(plugin.example for plugin in known))
