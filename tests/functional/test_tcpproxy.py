"""The network that tests break: what it lets through, cuts and holds up."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.processes import ServerProcess
from tests.functional.tcpproxy import Fate, Network

_TIMEOUT_S = 10.0


class Echo(ServerProcess):
    """Stands for a member: its peer port is this process's and sends back what comes."""

    label = "echo"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._listener = socket.create_server(("127.0.0.1", self.peer_port))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def pid(self) -> int:
        """Of this process: what the test dials counts as dialled by this member."""
        return threading.main_thread().native_id or 0

    @property
    def running(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Accept nobody any more; twice is no error."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # else a thread in accept() would take one more
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    @staticmethod
    def _echo(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)


class NetworkTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.network = Network()
        self.addCleanup(self.network.close)
        self.member = Echo(Path(directory.name))
        self.addCleanup(self.member.close)
        self.port = int(self.network.front(self.member).rpartition(":")[2])
        self.both = [(self.member, self.member)]

    def dial(self) -> socket.socket:
        """A new connection through the proxy."""
        connection = socket.create_connection(("127.0.0.1", self.port), _TIMEOUT_S)
        self.addCleanup(connection.close)
        return connection

    def is_reset(self, connection: socket.socket) -> bool:
        """Whether it has ended without order."""
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:
            return True

    def test_everything_gets_through(self) -> None:
        """More than any buffer holds, in both directions, and its end."""
        connection = self.dial()
        sent = bytes(range(256)) * 20_000
        threading.Thread(target=lambda: (connection.sendall(sent), connection.shutdown(socket.SHUT_WR))).start()
        received = b""
        while data := connection.recv(1 << 20):
            received += data
        self.assertEqual(received, sent)
        self.assertGreaterEqual(self.network.passed_bytes, 2 * len(sent))

    def test_cut(self) -> None:
        """Connections are reset, new ones too, until it is healed."""
        connection = self.dial()
        connection.sendall(b"a")
        self.assertEqual(connection.recv(1), b"a")
        self.network.break_directions(Fate.CUT, self.both)
        self.assertTrue(self.is_reset(connection))
        self.assertTrue(self.is_reset(self.dial()))
        self.network.heal()
        connection = self.dial()
        connection.sendall(b"b")
        self.assertEqual(connection.recv(1), b"b")

    def test_silent(self) -> None:
        """Nothing gets through by old connections or new ones; when it is healed, all of it does."""
        old = self.dial()
        old.sendall(b"a")
        self.assertEqual(old.recv(1), b"a")
        self.network.break_directions(Fate.SILENT, self.both)
        new = self.dial()
        for connection in (old, new):
            connection.sendall(b"b")
            connection.settimeout(0.1)
            with self.assertRaises(TimeoutError):
                connection.recv(1)
            connection.settimeout(_TIMEOUT_S)
        self.network.heal()
        self.assertEqual((old.recv(1), new.recv(1)), (b"b", b"b"))

    def test_others_are_let_through(self) -> None:
        """What befalls members is nothing to a connection of somebody else."""
        self.network.break_directions(Fate.CUT, self.both)
        self.member.__class__ = Stranger
        connection = self.dial()
        connection.sendall(b"a")
        self.assertEqual(connection.recv(1), b"a")

    def test_nobody_there(self) -> None:
        """A member that does not listen is a connection that is reset."""
        self.member.close()
        self.assertTrue(self.is_reset(self.dial()))


class Stranger(Echo):
    """Another process's."""

    @property
    def pid(self) -> int:
        """Init's."""
        return 1
