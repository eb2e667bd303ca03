"""The least that takes part in a cluster: a Raft node with its log in memory, behind the real peer transport."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall

from twistedkv.certs import Certificates
from twistedkv.pb.raft_pb2 import ConfChangeV2
from twistedkv.protocols.peer import Peers
from twistedkv.protocols.tls import ClientContext, ServerContext, TLSConfig
from twistedkv.raft import confchange
from twistedkv.raft.config import Config
from twistedkv.raft.log import RaftLog
from twistedkv.raft.messages import ConfState, Entry, EntryType, HardState, Message
from twistedkv.raft.node import RaftNode

TICK_S = 0.1


class FileSink:
    """A snapshot's database in a file; the message goes to Raft when all of it is there."""

    def __init__(self, path: Path, done: Callable[[], None]) -> None:
        self._file = path.open("wb")
        self._done = done
        self.aborted = False

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)

    def finish(self) -> Deferred[None]:
        self._file.close()
        self._done()
        return succeed(None)

    def abort(self) -> None:
        self._file.close()
        self.aborted = True


class Follower:
    """One member without a store. It is its transport's receiver.

    Args:
        directory: for databases that come by snapshot.
        made: certificates; ``None`` speaks plaintext.
    """

    def __init__(
        self, reactor: Any, me: int, cluster_id: int, url: str, directory: Path, made: Certificates | None = None
    ) -> None:
        self._reactor = reactor
        self._directory = directory
        self.node = RaftNode(Config(me, Random(me)), RaftLog(), HardState(), ConfState(), 0)
        self.peers = Peers(reactor, me, cluster_id, "3.5.1", [url], *contexts(reactor, made), receiver=self)
        self.url = url
        self.applied: list[Entry] = []
        self.reads: list[int] = []
        self.messages: list[Message] = []
        self.databases: list[Path] = []
        self.was_removed = False
        self.unreachable_members: list[int] = []
        self._driving: IDelayedCall | None = None
        self._ticking: IDelayedCall | None = None
        self._watches: list[tuple[Callable[[], bool], Deferred[None]]] = []

    def start(self) -> None:
        """Listen and tick."""
        self.peers.listen([self.url])
        self._ticking = self._reactor.callLater(TICK_S, self._tick)

    def stop(self) -> Deferred[None]:
        """Leave nothing."""
        for call in (self._driving, self._ticking):
            if call is not None and call.active():
                call.cancel()
        self._driving = self._ticking = None
        return self.peers.stop()

    def when(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> Deferred[None]:
        """Fires when the condition holds after something has happened here."""
        waiting: Deferred[None] = Deferred()
        self._watches.append((condition, waiting))
        return waiting.addTimeout(timeout_s, self._reactor)

    # What the transport tells.

    def received(self, message: Message) -> None:
        self.messages.append(message)
        self.node.step(message)
        self.drive()

    def snapshot_begin(self, message: Message, crc32c: int | None = None) -> FileSink:
        path = self._directory / f"{len(self.databases)}.db"

        def done() -> None:
            self.databases.append(path)
            self.received(message)

        return FileSink(path, done)

    def unreachable(self, member_id: int) -> None:
        self.unreachable_members.append(member_id)
        self.node.report_unreachable(member_id)

    def snapshot_sent(self, member_id: int, ok: bool) -> None:
        self.node.report_snapshot(member_id, failed=not ok)

    def removed(self) -> None:
        self.was_removed = True
        self._look()

    def is_removed(self, member_id: int) -> bool:
        return False

    def members_json(self) -> bytes:
        return b"[]\n"

    def version_json(self) -> bytes:
        return b'{"etcdserver":"3.5.1","etcdcluster":"3.5.0"}'

    # The loop.

    def drive(self) -> None:
        """Take what the node owes, once this turn's messages are in."""
        if self._driving is None:
            self._driving = self._reactor.callLater(0, self._drive)

    def _drive(self) -> None:
        self._driving = None
        while self.node.has_ready():
            ready = self.node.ready()
            self.peers.send([*ready.messages, *ready.responses])
            for entry in ready.committed:
                self._apply(entry)
            self.reads += [state.index for state in ready.read_states]
            self.node.advance(ready)
        self._look()

    def _apply(self, entry: Entry) -> None:
        self.applied.append(entry)
        if entry.type is not EntryType.NORMAL:
            change = confchange.decode(entry)
            if not isinstance(change, ConfChangeV2):
                self.node.apply_conf_change(change)

    def _tick(self) -> None:
        self._ticking = self._reactor.callLater(TICK_S, self._tick)
        self.node.tick()
        self.drive()

    def _look(self) -> None:
        for watch in list(self._watches):
            condition, waiting = watch
            if waiting.called:
                self._watches.remove(watch)
            elif condition():
                self._watches.remove(watch)
                waiting.callback(None)


def contexts(reactor: Any, made: Certificates | None) -> tuple[ServerContext | None, ClientContext | None]:
    """Both sides of TLS between members, with the peer pair."""
    if made is None:
        return None, None
    config = TLSConfig(str(made.peer.certificate), str(made.peer.key), str(made.ca.certificate), True)
    return ServerContext(config, reactor, ("http/1.1",)), ClientContext(config, reactor, ("http/1.1",))
