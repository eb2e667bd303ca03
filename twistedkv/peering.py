"""The other members, as one member needs them: to be talked to, asked, and seen to be there.

:class:`twistedkv.protocols.peer.Peers` is it over sockets; a test has one without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred

from twistedkv.raft.messages import Message


class Reply(NamedTuple):
    """The answer to a question over the peer port."""

    status: int
    fields: Mapping[str, str]  # names in lower case
    body: bytes


class Transport(Protocol):
    """Carries what members say to each other. Nothing here waits: what cannot leave is dropped, and Raft is told."""

    def set_peer(self, member_id: int, urls: Sequence[str]) -> None:
        """Talk to this member from now on, or by other URLs than before.

        Raises:
            ValueError: there is no URL, or one that is none.
        """

    def remove_peer(self, member_id: int) -> None:
        """Talk to this member no more; nothing happens if it is none of our peers."""

    def add_remote(self, member_id: int, urls: Sequence[str]) -> None:
        """Be able to answer someone who is not a peer yet."""

    def active_since(self, member_id: int) -> float | None:
        """The reactor's time since which this peer was heard of without a break; ``None`` if it is not heard of."""

    def send(self, messages: Sequence[Message]) -> None:
        """Send what Raft has to say; never a message of type SNAPSHOT."""

    def send_snapshot(self, message: Message, chunks: Callable[[], Iterator[bytes]], crc32c: int) -> None:
        """Deliver a snapshot: its message, and the database in parts, read as fast as the peer takes them.

        Args:
            crc32c: of the whole database.
        """

    def ask(
        self, member_id: int, method: str, path: str, body: bytes = b"", content_type: str = "", timeout_s: float = 5.0
    ) -> Deferred[Reply]:
        """Ask a member something over its peer port. Fails if there is no answer in time, or no such peer."""
