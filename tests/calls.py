"""A call that remembers what its handler did with it."""

from __future__ import annotations

from twistedkv.errors import KVError
from twistedkv.protocols.rpc import Call, Head, Method, Peer


class RecordedCall(Call):
    """The transport's side of a call, without a transport.

    Args:
        method: the one called.
        message: the request of a UNARY or SERVER_STREAM method.
    """

    def __init__(self, method: Method, message: bytes = b"", metadata: dict[str, str] | None = None) -> None:
        super().__init__(method, Head(method.path, metadata or {}, None), Peer("192.0.2.7", 4711, None, True), message)
        self.sent: list[bytes] = []
        self.error: BaseException | None = None
        self.room = True

    @property
    def writable(self) -> bool:
        return self.room

    def run(self) -> RecordedCall:
        """Call the handler as a transport does: what it raises becomes the status."""
        try:
            self.method.handler(self)
        except KVError as error:
            self.fail(error)
        return self

    def reply(self, message: bytes) -> None:
        if not self.done:
            self.sent.append(message)
            self.done = True

    def fail(self, error: BaseException) -> None:
        if not self.done:
            self.error = error
            self.done = True

    def send(self, message: bytes) -> None:
        if not self.done:
            self.sent.append(message)

    def finish(self) -> None:
        self.done = True
