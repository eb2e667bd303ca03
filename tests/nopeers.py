"""A transport that reaches nobody: for a member that is alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from twisted.internet.defer import Deferred, fail

from twistedkv.peering import Reply
from twistedkv.protocols.receiver import Receiver
from twistedkv.raft.messages import Message


class NoPeers:
    """See :class:`twistedkv.peering.Transport`; what is sent is kept in ``sent``."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.sent: list[Message] = []
        self.urls: dict[int, Sequence[str]] = {}
        self.active: dict[int, float] = {}  # what active_since says

    def set_peer(self, member_id: int, urls: Sequence[str]) -> None:
        self.urls[member_id] = urls

    def remove_peer(self, member_id: int) -> None:
        self.urls.pop(member_id, None)

    def add_remote(self, member_id: int, urls: Sequence[str]) -> None:
        """Nobody is reached anyway."""

    def active_since(self, member_id: int) -> float | None:
        return self.active.get(member_id)

    def send(self, messages: Sequence[Message]) -> None:
        self.sent += messages

    def send_snapshot(self, message: Message, chunks: Callable[[], Iterator[bytes]], crc32c: int) -> None:
        self.sent.append(message)

    def ask(
        self, member_id: int, method: str, path: str, body: bytes = b"", content_type: str = "", timeout_s: float = 5.0
    ) -> Deferred[Reply]:
        return fail(ConnectionError("nobody is reached"))
