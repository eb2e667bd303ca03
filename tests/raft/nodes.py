"""Nodes in the states that tests begin from, and a driver whose disk is quick."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Any

from twistedkv.pb import raft_pb2
from twistedkv.raft import confchange
from twistedkv.raft.config import Config
from twistedkv.raft.log import RaftLog
from twistedkv.raft.messages import ConfState, Entry, EntryType, HardState, Message, MessageType, Ready, Role
from twistedkv.raft.node import RaftNode


def make_node(*voters: int, learners: tuple[int, ...] = (), **options: Any) -> RaftNode:
    """Node 1 of a new cluster."""
    return RaftNode(Config(id=1, random=Random(7), **options), RaftLog(), HardState(), ConfState(voters, learners), 0)


def take(node: RaftNode) -> Ready:
    """The next Ready, done: changes of members are applied."""
    ready = node.ready()
    for entry in ready.committed:
        if entry.type is not EntryType.NORMAL:
            node.apply_conf_change(confchange.decode(entry))
    node.advance(ready)
    return ready


def settle(node: RaftNode) -> list[Ready]:
    """Do all that the node asks for."""
    done = []
    while node.has_ready():
        done.append(take(node))
    return done


def sent_in(readies: Iterable[Ready]) -> list[Message]:
    """All that was sent, in order."""
    return [message for ready in readies for message in (*ready.messages, *ready.responses)]


def kinds(messages: Iterable[Message]) -> list[tuple[MessageType, int]]:
    """Type and receiver of each."""
    return [(message.type, message.to) for message in messages]


def candidate(*voters: int, **options: Any) -> RaftNode:
    """Node 1 of ``voters``, which has asked for their votes in term 1."""
    node = make_node(*voters, pre_vote=False, **options)
    node.campaign()
    settle(node)
    assert node.role is (Role.CANDIDATE if len(voters) > 1 else Role.LEADER)
    return node


def leader(*voters: int, **options: Any) -> RaftNode:
    """Node 1, leader of ``voters`` in term 1, whose first entry all of them have; they are sent appends at once."""
    node = candidate(*voters, **options)
    for peer in voters[1:]:
        node.step(Message(MessageType.VOTE_RESPONSE, 1, peer, term=1))
    settle(node)
    for peer in node.progress:
        if peer != 1:
            acknowledge(node, peer, 1)
    settle(node)
    assert (node.role, node.commit, node.applied) == (Role.LEADER, 1, 1)
    return node


def acknowledge(node: RaftNode, peer: int, index: int) -> None:
    """``peer`` has the log up to ``index``."""
    node.step(Message(MessageType.APPEND_RESPONSE, 1, peer, term=node.term, index=index))


def follower(*voters: int, leader: int = 2, **options: Any) -> RaftNode:
    """Node 1 of ``voters``, which ``leader`` leads in term 1 and has sent one committed entry."""
    node = make_node(*voters, **options)
    node.step(Message(MessageType.APPEND, 1, leader, term=1, entries=[Entry(1, 1, b"")], commit=1))
    settle(node)
    assert (node.leader, node.applied) == (leader, 1)
    return node


def change(kind: raft_pb2.ConfChangeType, member: int) -> raft_pb2.ConfChange:
    """One change of the members."""
    return raft_pb2.ConfChange(id=1, type=kind, node_id=member)


def as_read(message: Message) -> Message:
    """The message as its receiver has it: sequences are lists, or nothing."""
    return replace(message, entries=list(message.entries) or ())
