"""What a node has said since its driver last came for it, sorted by what has to be durable before it leaves.

Most of it waits for no disk: what a leader sends is not counted before others have it (Raft thesis §10.2.1), and no
member relies on a heartbeat or on a question for longer than it is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from twistedkv.raft.messages import Message, MessageType, ReadState
from twistedkv.raft.soundness import FORWARDED

# What promises that something is durable (Raft §5.1, figure 2). To ask for votes is to promise the log they are asked
# with: who forgets the end of it in a crash, and asks again in the same term, would count the votes that it was given
# for the longer one.
_AFTER_SYNC = frozenset(
    {MessageType.APPEND_RESPONSE, MessageType.VOTE, MessageType.VOTE_RESPONSE, MessageType.PRE_VOTE_RESPONSE}
)


class Outbox:
    """What one node says.

    Args:
        me: its id.
    """

    def __init__(self, me: int) -> None:
        self._me = me
        self.messages: list[Message] = []  # which wait for nothing
        self.responses: list[Message] = []  # which wait for the disk
        self.read_states: list[ReadState] = []
        self.own_votes: list[Message] = []  # which count once they are durable
        self.taken_votes: list[Message] = []  # own ones, with the Ready that is on its way to the disk

    def put(self, message: Message, term: int) -> None:
        """Send as this node, in ``term`` unless the message has another or none."""
        kind = message.type
        if not message.sender:
            message.sender = self._me
        if message.term == 0 and kind not in FORWARDED:
            message.term = term
        if kind not in _AFTER_SYNC:
            self.messages.append(message)
        elif message.to == self._me:
            self.own_votes.append(message)
        else:
            self.responses.append(message)

    def take(self) -> tuple[Sequence[Message], Sequence[Message], Sequence[ReadState]]:
        """Messages, messages that wait for the disk, and reads, for a Ready.

        The own votes so far become durable with it; those that come while the disk works do not.
        """
        messages, responses, read_states = self.messages, self.responses, self.read_states
        self.messages, self.responses, self.read_states = [], [], []
        if self.own_votes:
            self.taken_votes, self.own_votes = self.own_votes, []
        return messages, responses, read_states

    def take_unsynced(self) -> tuple[Sequence[Message], Sequence[ReadState]]:
        """Messages and reads, without what waits for the disk."""
        messages, read_states = self.messages, self.read_states
        self.messages, self.read_states = [], []
        return messages, read_states
