"""The network between the members of a cluster, for tests that break it.

A TCP proxy stands in front of each member's peer port, and the member advertises the proxy's URL. All members are on
127.0.0.1, so who dials is read from the kernel's tables: the process that holds the other end of the connection. A
connection from anybody else, such as a test that plays a member, goes through whatever is cut. Linux only.

What a proxy cannot do: lose single packets, or let one direction of a connection through and not the other.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path

from tests.functional.processes import ServerProcess

_BUFFER_BYTES = 256 * 1024  # between two members, each way; who sends more has to wait
_COMMAND_TIMEOUT_S = 10.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER by which close() sends a RST


class Fate(Enum):
    """What becomes of connections."""

    CUT = "cut"  # they end, and new ones are reset
    SILENT = "silent"  # they stay, new ones are accepted, and nothing gets through until they are healed


class Network:
    """The proxies of one cluster, driven by a thread of their own.

    A direction of dialling is a pair of members: who dials and who is dialled. Cutting only ``(a, b)`` leaves what
    ``b`` has dialled, over which both speak as well.
    """

    def __init__(self) -> None:
        self.passed_bytes = 0  # through all proxies, ever
        self._selector = selectors.DefaultSelector()
        self._members: dict[socket.socket, ServerProcess] = {}  # by the listener in front of it
        self._fates: dict[tuple[ServerProcess, ServerProcess], Fate] = {}
        self._links: set[_Link] = set()
        self._commands: list[tuple[Callable[[], None], threading.Event]] = []
        self._lock = threading.Lock()
        self._waker, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._closed = False
        self._selector.register(self._woken, selectors.EVENT_READ, self._on_command)
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()

    def front(self, member: ServerProcess) -> str:
        """Stand in front of ``member``'s peer port; the URL that it has to advertise."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        listener.setblocking(False)

        def begin() -> None:
            self._members[listener] = member
            self._selector.register(listener, selectors.EVENT_READ, lambda _: self._accept(listener))

        self._do(begin)
        scheme = "https" if member.peer_tls else "http"
        return f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"

    def break_directions(self, fate: Fate, directions: Iterable[tuple[ServerProcess, ServerProcess]]) -> None:
        """Let ``fate`` befall these directions; it has when this returns."""
        broken = dict.fromkeys(directions, fate)

        def begin() -> None:
            self._fates.update(broken)
            for link in list(self._links):
                link.obey(self.fate_of(link))

        self._do(begin)

    def isolate(self, fate: Fate, member: ServerProcess, others: Sequence[ServerProcess]) -> None:
        """Break everything between one member and others, both ways."""
        self.break_directions(fate, [(member, other) for other in others] + [(other, member) for other in others])

    def heal(self) -> None:
        """Break nothing any more."""

        def begin() -> None:
            self._fates.clear()
            for link in list(self._links):
                link.obey(None)

        self._do(begin)

    def close(self) -> None:
        """Close everything; twice is no error."""
        if self._closed:
            return

        def end() -> None:
            self._closed = True
            for link in list(self._links):
                link.end()
            for listener in self._members:
                self._selector.unregister(listener)
                listener.close()

        self._do(end)
        self._thread.join(_COMMAND_TIMEOUT_S)
        self._selector.close()
        self._waker.close()
        self._woken.close()

    # --- on the network's own thread -----------------------------------------------------------------

    def fate_of(self, link: _Link) -> Fate | None:
        """What befalls a connection at the moment."""
        return None if link.source is None else self._fates.get((link.source, link.target))

    def watch(self, link: _Link, connection: socket.socket, events: int) -> None:
        """Have ``link`` hear of ``events`` of one of its connections, of none if they are 0."""
        known = connection in self._selector.get_map()
        if events and known:
            self._selector.modify(connection, events, link.on_event(connection))
        elif events:
            self._selector.register(connection, events, link.on_event(connection))
        elif known:
            self._selector.unregister(connection)

    def forget(self, link: _Link) -> None:
        """It is over."""
        self._links.discard(link)

    def _do(self, command: Callable[[], None]) -> None:
        done = threading.Event()
        with self._lock:
            self._commands.append((command, done))
        self._waker.send(b"!")
        if not done.wait(_COMMAND_TIMEOUT_S):
            raise RuntimeError("the network's thread does not answer")

    def _run(self) -> None:
        while not self._closed:
            for key, events in self._selector.select():
                key.data(events)

    def _on_command(self, _: int) -> None:
        with suppress(BlockingIOError):
            self._woken.recv(4096)
        with self._lock:
            commands, self._commands = self._commands, []
        for command, done in commands:
            command()
            done.set()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, address = listener.accept()
        except OSError:  # whoever dialled has hung up already
            return
        connection.setblocking(False)
        source = _member_at(address[1], listener.getsockname()[1], self._members.values())
        link = _Link(self, connection, source, self._members[listener])
        self._links.add(link)
        link.obey(self.fate_of(link))


class _Link:
    """One connection to a proxy, and the one that the proxy makes in its place."""

    def __init__(
        self, network: Network, accepted: socket.socket, source: ServerProcess | None, target: ServerProcess
    ) -> None:
        self.source = source
        self.target = target
        self._network = network
        self._accepted = accepted
        self._made: socket.socket | None = None
        self._connected = False
        self._silent = False
        self._ways: dict[socket.socket, _Way] = {}  # by where the bytes come from

    def obey(self, fate: Fate | None) -> None:
        """Be cut, silent or open from now on."""
        if fate is Fate.CUT:
            self.end()
            return
        self._silent = fate is Fate.SILENT
        if not self._silent and self._made is None:
            self._dial()
        else:
            self._watch()

    def end(self, *, reset: bool = True) -> None:
        """End both connections, by a RST or after what was written to them."""
        self._network.forget(self)
        for connection in (self._accepted, self._made):
            if connection is not None and connection.fileno() >= 0:
                self._network.watch(self, connection, 0)
                if reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                connection.close()

    def on_event(self, connection: socket.socket) -> Callable[[int], None]:
        """What to call when something can be done with one of the two connections."""

        def event(events: int) -> None:
            if connection.fileno() < 0 or self._silent:
                return
            try:
                self._go_on(connection, events)
            except OSError:
                self.end()

        return event

    def _dial(self) -> None:
        made = self._made = socket.socket()
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ways = {self._accepted: _Way(self._accepted, made), made: _Way(made, self._accepted)}
        with suppress(BlockingIOError):
            made.connect(("127.0.0.1", self.target.peer_port))
        self._watch()

    def _go_on(self, connection: socket.socket, events: int) -> None:
        if not self._connected:
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.end()
                return
            self._connected = True
        if events & selectors.EVENT_READ:
            self._network.passed_bytes += self._ways[connection].read()
        for way in self._ways.values():
            way.write()
        if all(way.over for way in self._ways.values()):
            self.end(reset=False)
        else:
            self._watch()

    def _watch(self) -> None:
        made = self._made
        if made is None or self._silent:
            for connection in (self._accepted, made):
                if connection is not None:
                    self._network.watch(self, connection, 0)
            return
        if not self._connected:
            self._network.watch(self, made, selectors.EVENT_WRITE)
            return
        there, back = self._ways[self._accepted], self._ways[made]
        for connection, incoming, outgoing in ((self._accepted, there, back), (made, back, there)):
            events = selectors.EVENT_READ if incoming.wants_more else 0
            self._network.watch(self, connection, events | (selectors.EVENT_WRITE if outgoing.held else 0))


class _Way:
    """Bytes from one connection to the other."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.held = b""  # read, not written
        self.over = False
        self._source = source
        self._target = target
        self._read_all = False

    @property
    def wants_more(self) -> bool:
        """Whether it would take more bytes now."""
        return not self._read_all and len(self.held) < _BUFFER_BYTES

    def read(self) -> int:
        """Take what has come; how many bytes that is."""
        if self._read_all:
            return 0
        try:
            data = self._source.recv(_BUFFER_BYTES)
        except BlockingIOError:
            return 0
        self._read_all = not data
        self.held += data
        return len(data)

    def write(self) -> None:
        """Pass on what can be."""
        if self.held:
            with suppress(BlockingIOError):
                self.held = self.held[self._target.send(self.held) :]
        if self._read_all and not self.held and not self.over:
            self.over = True
            self._target.shutdown(socket.SHUT_WR)


def _member_at(port: int, dialled: int, members: Iterable[ServerProcess]) -> ServerProcess | None:
    """The member whose process has a connection from ``port`` of 127.0.0.1 to ``dialled``; None if none has."""
    inode = _inode_of(port, dialled)
    for member in members:
        if inode is None or not member.running:
            continue
        with suppress(OSError):  # it is about to end
            for link in Path(f"/proc/{member.pid}/fd").iterdir():
                with suppress(OSError):  # that one was closed meanwhile
                    if str(link.readlink()) == f"socket:[{inode}]":
                        return member
    return None


def _inode_of(port: int, dialled: int) -> str | None:
    local, remote = f"0100007F:{port:04X}", f"0100007F:{dialled:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines():
        fields = line.split()
        if fields[1:3] == [local, remote]:
            return fields[9]
    return None
