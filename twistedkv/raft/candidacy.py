"""One attempt of a node to be elected: whom it asks, and what the votes come to (Raft §5.2, thesis §9.6)."""

from __future__ import annotations

from typing import Protocol

from twistedkv.raft.confchange import Configuration
from twistedkv.raft.config import Config
from twistedkv.raft.log import RaftLog
from twistedkv.raft.messages import Message, MessageType
from twistedkv.raft.quorum import VoteResult, joint_vote

TRANSFER = b"CampaignTransfer"  # context of a vote request that the leader itself asked for (etcd raft.go)

RESPONSE_TO = {
    MessageType.VOTE: MessageType.VOTE_RESPONSE,
    MessageType.PRE_VOTE: MessageType.PRE_VOTE_RESPONSE,
}


class Node(Protocol):
    """What a candidacy needs of the node that stands."""

    config: Config
    log: RaftLog
    term: int
    configuration: Configuration

    def send(self, message: Message) -> None:
        """Send as this node, in its term unless the message has another."""


class Candidacy:
    """The votes for one node in one term, or the pre-votes, which only ask whether an election could be won."""

    def __init__(self, node: Node, *, pre: bool) -> None:
        self._node = node
        self._votes: dict[int, bool] = {}
        self.pre = pre

    def ask(self, *, transfer: bool = False) -> None:
        """Ask every voter, and vote for oneself, which counts when it is durable."""
        node, log = self._node, self._node.log
        kind = MessageType.PRE_VOTE if self.pre else MessageType.VOTE
        term = node.term + self.pre  # a pre-vote is for the term to come
        context = TRANSFER if transfer else b""
        for voter in sorted(node.configuration.all_voters):
            if voter == node.config.id:
                node.send(Message(RESPONSE_TO[kind], voter, term=term))
            else:
                last, last_term = log.last_index, log.last_term
                node.send(Message(kind, voter, term=term, log_term=last_term, index=last, context=context))

    def count(self, message: Message) -> VoteResult:
        """Take an answer; what the votes come to. Others' messages, and a voter's second answer, change nothing."""
        node = self._node
        is_answer = message.type is RESPONSE_TO[MessageType.PRE_VOTE if self.pre else MessageType.VOTE]
        # A pre-vote that is granted is for the term that was asked for, and may have been another one before.
        if not is_answer or not (message.reject or message.term == node.term + self.pre):
            return VoteResult.PENDING
        self._votes.setdefault(message.sender, not message.reject)
        return joint_vote(node.configuration.voters, node.configuration.outgoing, self._votes)
