"""The v2 store of one member: the tree, those who watch it, and what is to be kept of it.

Only :class:`twistedkv.apply.Applier` changes it.
"""

from __future__ import annotations

from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.storage.directory import Directory
from twistedkv.v2events import Event
from twistedkv.v2records import DirectoryRecords
from twistedkv.v2request import PlainSet, carry_out
from twistedkv.v2watch import History, V2Hub


class V2Store:
    """The store.

    Args:
        directory: the tree; a new one if there is none.
        hub: its sink.
    """

    def __init__(self, directory: Directory | None = None, hub: V2Hub | None = None) -> None:
        self.hub = hub or V2Hub()
        self.directory = directory or Directory(self.hub)
        self.records = DirectoryRecords(self.directory, self.hub)

    def apply(self, request: Request | PlainSet) -> Event | None:
        """Carry out one request; see :func:`twistedkv.v2request.carry_out`.

        Raises:
            V2Error: it was refused, and nothing was changed.
        """
        return carry_out(request, self.directory)

    def restore(self, directory: Directory, history: History) -> None:
        """Have this tree and history, later ones of the same store, which nobody else uses; watchers are told."""
        self.directory.restore(directory)
        self.hub.restored(history)
