"""The other members without a network, for what only asks them: a test answers, or lets a member of its own do so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, fail

from twistedkv.peering import Reply
from twistedkv.protocols.answers import Answer
from twistedkv.raft.messages import Message


@dataclass
class Asked:
    """One question that was asked of a member."""

    member_id: int
    method: str
    path: str
    body: bytes
    content_type: str
    timeout_s: float
    reply: Deferred[Reply] = field(default_factory=Deferred)

    def answer(self, status: int, body: bytes = b"") -> None:
        """The member answers."""
        self.reply.callback(Reply(status, {}, body))

    @property
    def cancelled(self) -> bool:
        """Whether who asked has given it up."""
        return self.reply.called


Site = Callable[[str, str, bytes], Deferred[Answer]]


class AskedPeers:
    """A :class:`twistedkv.peering.Transport` whose questions wait for the test, or go to the peer port of a site."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []  # that nobody answers by itself
        self.sites: dict[int, Site] = {}
        self.missing: set[int] = set()  # members that are no peers

    def ask(
        self, member_id: int, method: str, path: str, body: bytes = b"", content_type: str = "", timeout_s: float = 5.0
    ) -> Deferred[Reply]:
        """See the Transport."""
        if member_id in self.missing:
            return fail(LookupError(f"{member_id:x} is no peer of ours"))
        site = self.sites.get(member_id)
        if site is not None:
            return site(method, path, body).addCallback(lambda answer: Reply(answer.status, {}, answer.body))
        asked = Asked(member_id, method, path, body, content_type, timeout_s)
        self.asked.append(asked)
        return asked.reply

    def take(self) -> list[Asked]:
        """What was asked since the last call."""
        asked, self.asked = self.asked, []
        return asked

    def set_peer(self, member_id: int, urls: Sequence[str]) -> None:
        """Not needed by who asks."""

    def remove_peer(self, member_id: int) -> None:
        """Not needed by who asks."""

    def add_remote(self, member_id: int, urls: Sequence[str]) -> None:
        """Not needed by who asks."""

    def active_since(self, member_id: int) -> float | None:
        """Nobody is heard of."""
        return None

    def send(self, messages: Sequence[Message]) -> None:
        """Goes nowhere."""

    def send_snapshot(self, message: Message, chunks: Callable[[], Iterator[bytes]], crc32c: int) -> None:
        """Goes nowhere."""
