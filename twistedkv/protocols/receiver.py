"""What the peer port needs of the member behind it, and what it tells whoever keeps statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred

from twistedkv.protocols.msgappv2 import StreamKind
from twistedkv.raft.messages import Message


class SnapshotSink(Protocol):
    """Takes the database of one snapshot. After an error, its own or the connection's, it is aborted."""

    def write(self, chunk: bytes) -> Deferred[None] | None:
        """Take a part; no further one comes before the Deferred, if there is one, has fired."""

    def finish(self) -> Deferred[None]:
        """All is here. Fires when the snapshot is saved and Raft has its message; its failure is told the sender."""

    def abort(self) -> None:
        """The rest does not come."""


class Receiver(Protocol):
    """The member. It is called from the reactor's thread."""

    def received(self, message: Message) -> None:
        """A message for us, by a member of this cluster that was not removed."""

    def snapshot_begin(self, message: Message, crc32c: int | None) -> SnapshotSink:
        """A snapshot for us begins to arrive; ``message`` goes to Raft when the sink has all of it.

        Args:
            crc32c: of its database; ``None`` if its sender does not say.
        """

    def unreachable(self, member_id: int) -> None:
        """A message to this member was lost. Called from within ``send`` too."""

    def snapshot_sent(self, member_id: int, ok: bool) -> None:
        """The snapshot for this member is there, or is not."""

    def removed(self) -> None:
        """Others say that we were removed from the cluster."""

    def is_removed(self, member_id: int) -> bool:
        """Whether this member was removed from the cluster."""

    def members_json(self) -> bytes:
        """The list of members as ``/members`` gives it, which is what a member reads that joins."""

    def version_json(self) -> bytes:
        """The versions of server and cluster as ``/version`` gives them; the leader asks every member."""


class PeerObserver(Protocol):
    """Keeps statistics."""

    clock_s: Callable[[], float]  # monotonic, by which it is measured how long appends take

    def sent_bytes(self, member_id: int, count: int) -> None:
        """So many bytes of messages were handed to a connection."""

    def received_bytes(self, member_id: int, count: int) -> None:
        """So many bytes of messages came."""

    def appends_written(self, member_id: int, size: int, count: int, seconds: float) -> None:
        """So many appends went onto their stream in one write, which took so long; :meth:`sent_bytes` is not called."""

    def appends_sent(self, member_id: int, size: int, count: int) -> None:
        """So many appends go another way, and have so many bytes, which :meth:`sent_bytes` is told of as well."""

    def append_posted(self, member_id: int, seconds: float) -> None:
        """The answer to a posted append came after so long."""

    def append_lost(self, member_id: int) -> None:
        """A posted append was not taken."""

    def appends_received(self, member_id: int, size: int, count: int) -> None:
        """So many appends came; :meth:`received_bytes` is told of their bytes as well."""

    def send_failed(self, member_id: int) -> None:
        """A message was dropped."""

    def receive_failed(self, member_id: int) -> None:
        """What came was malformed or not for us."""

    def stream_active(self, member_id: int, kind: StreamKind, active: bool) -> None:
        """A stream from this member began or ended."""

    def round_trip(self, member_id: int, rtt_s: float, drift_s: float) -> None:
        """How long a question and its answer took, and how far this member's clock is ahead of ours."""

    def snapshot_sending(self, member_id: int) -> None:
        """A snapshot for this member is on its way."""

    def snapshot_sent(self, member_id: int, ok: bool) -> None:
        """It is there, or is not."""

    def snapshot_receiving(self, member_id: int) -> None:
        """A snapshot from this member begins to arrive."""

    def snapshot_received(self, member_id: int, ok: bool) -> None:
        """It is saved, or is not."""


class NoObserver:
    """Keeps none."""

    clock_s: Callable[[], float] = float  # it is always 0

    def sent_bytes(self, member_id: int, count: int) -> None: ...
    def received_bytes(self, member_id: int, count: int) -> None: ...
    def appends_written(self, member_id: int, size: int, count: int, seconds: float) -> None: ...
    def appends_sent(self, member_id: int, size: int, count: int) -> None: ...
    def append_posted(self, member_id: int, seconds: float) -> None: ...
    def append_lost(self, member_id: int) -> None: ...
    def appends_received(self, member_id: int, size: int, count: int) -> None: ...
    def send_failed(self, member_id: int) -> None: ...
    def receive_failed(self, member_id: int) -> None: ...
    def stream_active(self, member_id: int, kind: StreamKind, active: bool) -> None: ...
    def round_trip(self, member_id: int, rtt_s: float, drift_s: float) -> None: ...
    def snapshot_sending(self, member_id: int) -> None: ...
    def snapshot_sent(self, member_id: int, ok: bool) -> None: ...
    def snapshot_receiving(self, member_id: int) -> None: ...
    def snapshot_received(self, member_id: int, ok: bool) -> None: ...
