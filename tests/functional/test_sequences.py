"""Watches, leases, locks and elections against real etcd; and the comparison itself against falsified streams.

``TWISTEDKV_SEQUENCE_SEEDS`` ("1,2,3") and ``TWISTEDKV_SEQUENCE_STEPS`` (of each seed) ask for more.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import Message
from twisted.trial.unittest import SynchronousTestCase

from tests.functional.fullclient import Client, Falsify
from tests.functional.processes import MISSING_ETCD, EtcdProcess, ServerProcess, TLSFiles, TwistedkvProcess
from tests.functional.sequences import Run
from tests.functional.watchshape import misshapen
from twistedkv.pb import kv_pb2
from twistedkv.pb import rpc_pb2 as pb

_SEEDS = [int(seed) for seed in os.environ.get("TWISTEDKV_SEQUENCE_SEEDS", "1,2,3").split(",")]
_STEPS = int(os.environ.get("TWISTEDKV_SEQUENCE_STEPS", "400"))


class PairedClients(SynchronousTestCase):
    """New servers for each test."""

    skip = MISSING_ETCD

    def start(self, *types: type[ServerProcess], plaintext: bool = False) -> list[ServerProcess]:
        """Start one server of each type; they stop when the test ends."""
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        tls = None if plaintext else TLSFiles.make(Path(scratch.name) / "tls")
        servers = [each(Path(scratch.name) / f"{n}", tls) for n, each in enumerate(types)]
        for server in servers:
            self.addCleanup(server.stop)
            server.spawn()
        for server in servers:
            server.wait_until_ready()
        return servers

    def client(self, server: ServerProcess, falsify: Falsify | None = None) -> Client:
        """Connections to a server, closed when the test ends."""
        client = Client(server, falsify)
        self.addCleanup(client.close)
        return client


class SequenceTests(PairedClients):
    """The random sequences."""

    def test_random_sequences_show_what_etcd_shows(self) -> None:
        """Every answer and every event of random sequences over both doors is the one that real etcd gives."""
        events = 0
        for seed in _SEEDS:
            servers = self.start(EtcdProcess, TwistedkvProcess, plaintext=seed % 3 == 0)
            run = Run(*map(self.client, servers), seed)
            if parting := run.run(_STEPS):
                self.fail(str(parting))
            events += run.events
            for server in servers:
                server.stop()
        self.assertGreater(events, _STEPS)


class SelfCheckTests(PairedClients):
    """The harness examined: real etcd against itself, and against falsified answers."""

    def test_etcd_equals_itself(self) -> None:
        """Two real etcd servers show no difference, so what the test reports is not of its own making."""
        run = Run(*map(self.client, self.start(EtcdProcess, EtcdProcess)), 4)
        self.assertIsNone(run.run(300))

    def test_a_falsified_stream_is_found(self) -> None:
        """One wrong field in one message is reported, wherever it comes."""
        for number, (name, change) in enumerate(_FALSIFICATIONS.items()):
            servers = self.start(EtcdProcess, EtcdProcess, plaintext=True)
            liar = Liar(change)
            run = Run(self.client(servers[0]), self.client(servers[1], liar), 200 + number)
            parting = run.run(400)
            self.assertTrue(liar.lied, f"the sequence never gave an occasion for {name}")
            self.assertIsNotNone(parting, f"{name} went unnoticed")
            for server in servers:
                server.stop()


class Liar:
    """Changes the first message that can be changed."""

    def __init__(self, change: Callable[[Message], bool]) -> None:
        self._change = change
        self.lied = False

    def __call__(self, message: Message) -> None:
        self.lied = self.lied or self._change(message)


def _change_value(message: Message) -> bool:
    if isinstance(message, pb.WatchResponse) and message.events:
        message.events[0].kv.version += 1
        return True
    return False


def _lose_previous(message: Message) -> bool:
    for event in message.events if isinstance(message, pb.WatchResponse) else ():
        if event.HasField("prev_kv"):
            event.ClearField("prev_kv")
            return True
    return False


def _repeat(message: Message) -> bool:
    if isinstance(message, pb.WatchResponse) and message.events:
        message.events.append(message.events[0])
        return True
    return False


def _bump_compacted(message: Message) -> bool:
    if isinstance(message, pb.WatchResponse) and message.compact_revision:
        message.compact_revision += 1
        return True
    return False


def _reword(message: Message) -> bool:
    if isinstance(message, pb.WatchResponse) and message.cancel_reason:
        message.cancel_reason += "."
        return True
    return False


def _shorten(message: Message) -> bool:
    if isinstance(message, pb.LeaseKeepAliveResponse) and message.TTL:
        message.TTL -= 1
        return True
    return False


_FALSIFICATIONS: dict[str, Callable[[Message], bool]] = {
    "another version in an event": _change_value,
    "a lost previous pair": _lose_previous,
    "a repeated event": _repeat,
    "another compact revision": _bump_compacted,
    "another cancel reason": _reword,
    "a shorter lease": _shorten,
}


class ShapeTests(SynchronousTestCase):
    """What is wrong with the way in which events are cut into responses."""

    def _response(self, revision: int, *events: int, **fields: bool) -> pb.WatchResponse:
        header = pb.ResponseHeader(cluster_id=1, member_id=2, revision=revision, raft_term=2)
        made = [kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"a", mod_revision=each)) for each in events]
        return pb.WatchResponse(header=header, events=made, **fields)

    def _wrong(self, *responses: pb.WatchResponse) -> str:
        return misshapen(responses, None, 9)

    def test_whole_revisions_in_order_are_right(self) -> None:
        """However revisions are batched, and whatever the header says of later ones."""
        self.assertEqual(self._wrong(self._response(3, 2, 2, 3), self._response(9, 4), self._response(5, 5)), "")

    def test_a_revision_may_be_torn_in_fragments_only(self) -> None:
        """A revision that goes on in the next response needs the mark, and the mark needs a next response."""
        first, second = self._response(5, 2, 3), self._response(5, 3, 4)
        self.assertIn("revision 3 after 3", self._wrong(first, second))
        self.assertEqual(self._wrong(self._response(5, 2, 3, fragment=True), second), "")
        self.assertIn("fragment", self._wrong(self._response(5, 2, 3, fragment=True)))

    def test_wrong_headers(self) -> None:
        """A header must not be behind its events nor ahead of the store, and must be complete."""
        for response in (self._response(2, 3), self._response(10, 3)):
            self.assertIn("header", self._wrong(response))
        response = self._response(3, 3)
        response.header.member_id = 0
        self.assertIn("incomplete", self._wrong(response))

    def test_wrong_order(self) -> None:
        """Events go forward, in one response and from one to the next."""
        self.assertIn("revision", self._wrong(self._response(5, 3, 2)))
        self.assertIn("revision", self._wrong(self._response(5, 4), self._response(5, 3)))
        self.assertIn("about the watch", self._wrong(self._response(5, 4, canceled=True)))
