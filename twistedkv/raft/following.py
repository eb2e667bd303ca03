"""What a node does with what its leader says, and what it hands on to it.

It is the other side of :mod:`twistedkv.raft.leadership`. All that a follower remembers is in its log, so this has no
state of its own, and there is no new one with each term.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from twistedkv.raft.confchange import Configuration
from twistedkv.raft.config import Config
from twistedkv.raft.log import RaftLog, count_within
from twistedkv.raft.messages import Entry, Message, MessageType, Snapshot

_APPEND: Final = MessageType.APPEND  # a name of the module is found ten times as fast
_APPEND_RESPONSE: Final = MessageType.APPEND_RESPONSE


class Node(Protocol):
    """What following needs of the node that follows."""

    config: Config
    log: RaftLog

    def send(self, message: Message) -> None:
        """Send as this node, in its term."""

    def begin_with(self, configuration: Configuration) -> None:
        """Know these members, and nothing of how far they are."""


class Following:
    """One node as a follower, whoever leads."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._log = node.log

    def take(self, message: Message) -> None:
        """Take a message of this term's leader, and answer it."""
        if message.type is _APPEND:
            self._on_append(message)
        elif message.type is MessageType.HEARTBEAT:
            self._log.commit_to(message.commit)
            self._node.send(Message(MessageType.HEARTBEAT_RESPONSE, message.sender, context=message.context))
        else:
            index = self._log.last_index if self._restore(message.snapshot) else self._log.committed
            self._node.send(Message(_APPEND_RESPONSE, message.sender, index=index))

    def forward(self, leader: int, entries: Sequence[Entry]) -> None:
        """Hand proposals on to the leader, in order, in messages of limited size."""
        limit_bytes = self._node.config.max_size_per_message_bytes
        while entries:
            count = count_within(entries, limit_bytes)
            self._node.send(Message(MessageType.PROPOSE, leader, entries=entries[:count]))
            entries = entries[count:]

    def _on_append(self, message: Message) -> None:
        log = self._log
        response = Message(_APPEND_RESPONSE, message.sender, index=message.index)
        if message.index < log.committed:
            response.index = log.committed  # what is committed is the same everywhere (Raft §5.4)
        elif log.maybe_append(message.index, message.log_term, message.entries):
            committed = log.committed
            response.index = message.index + len(message.entries)
            log.commit_to(min(message.commit, response.index))  # Raft §5.3: not beyond what is known to be the leader's
            if log.committed > committed and not (message.entries or self._node.config.answers_commits):
                return
        else:
            response.reject = True
            response.reject_hint, response.log_term = log.conflict_hint(message.index, message.log_term)
        self._node.send(response)

    def _restore(self, snapshot: Snapshot | None) -> bool:
        """Take a snapshot in place of the log; false if this node has no use for it."""
        if snapshot is None or snapshot.meta.index <= self._log.committed:
            return False
        meta = snapshot.meta
        configuration = Configuration.of(meta.conf_state)
        if self._node.config.id not in configuration.members:
            return False  # it does not know this node: installing it could leave a cluster without a quorum
        if meta.index <= self._log.last_index and self._log.term(meta.index) == meta.term:
            self._log.commit_to(meta.index)  # Raft §7: the log has it all already
            return False
        self._log.restore(snapshot)
        self._node.begin_with(configuration)
        return True
