"""``memory:``: everything is lost when the member stops."""

from __future__ import annotations

from twisted.plugin import IPlugin
from zope.interface import implementer

from twistedkv.interfaces import IStoragePlugin
from twistedkv.storage.backend import Backend
from twistedkv.storage.memory import MemoryBackend


@implementer(IPlugin, IStoragePlugin)
class MemoryPlugin:
    """Makes :class:`~twistedkv.storage.memory.MemoryBackend`."""

    schemes = ("memory",)
    example = "memory:"

    def make(self, url: str) -> Backend:
        """A new, empty backend."""
        if url.partition(":")[2].strip("/"):
            raise ValueError("a memory storage has no name")
        return MemoryBackend()


memory = MemoryPlugin()
