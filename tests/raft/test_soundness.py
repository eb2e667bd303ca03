"""Peers that say what no member says: nothing is lost, nothing changes, and no member stops (etcd-io/etcd#21518).

A table of states and inputs, each of which is tried in each state where it makes no sense; test_fuzz.py goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.raft.nodes import acknowledge, as_read, candidate, follower, leader, make_node, sent_in, settle
from twistedkv.errors import InvariantError
from twistedkv.raft.messages import (
    ConfState,
    Entry,
    Message,
    MessageType,
    Role,
    Snapshot,
    SnapshotMeta,
)
from twistedkv.raft.node import RaftNode
from twistedkv.raft.soundness import FORWARDED, is_sound
from twistedkv.raft.wire import decode_message, encode_message

STRANGER = 9
HUGE = (1 << 64) - 1
ANSWERS = (
    MessageType.APPEND_RESPONSE,
    MessageType.VOTE_RESPONSE,
    MessageType.PRE_VOTE_RESPONSE,
    MessageType.HEARTBEAT_RESPONSE,
    MessageType.READ_INDEX_RESPONSE,
)

# --- states: node 1 of members 1, 2 and 3, where 4 learns, each in term 1 --------------------------------


def with_log(node: RaftNode) -> RaftNode:
    """Two more entries, one of them committed; the leader has heard of everyone."""
    if node.role is Role.LEADER:
        node.propose([b"a", b"b"])
        for peer in (2, 3, 4):
            acknowledge(node, peer, 2)
    else:
        entries = [Entry(1, 2, b"a"), Entry(1, 3, b"b")]
        node.step(Message(MessageType.APPEND, 1, 2, term=1, index=1, log_term=1, entries=entries, commit=2))
    settle(node)
    return node


def without_leader() -> RaftNode:
    node = with_log(follower(1, 2, 3, learners=(4,)))
    node.forget_leader()
    return node


def pre_candidate() -> RaftNode:
    node = without_leader()
    node.campaign()
    return node


def asking() -> RaftNode:
    node = candidate(1, 2, 3, learners=(4,))
    settle(node)
    return node


def handing_over() -> RaftNode:
    node = with_log(leader(1, 2, 3, learners=(4,)))
    node.transfer_leader(3)
    return node


def with_busy_disk() -> RaftNode:
    node = with_log(follower(1, 2, 3, learners=(4,)))
    node.step(Message(MessageType.APPEND, 1, 2, term=1, index=3, log_term=1, entries=[Entry(1, 4, b"c")], commit=3))
    node.ready()
    return node


def with_snapshot() -> RaftNode:
    node = with_log(follower(1, 2, 3, learners=(4,)))
    meta = SnapshotMeta(20, 1, ConfState((1, 2, 3), (4,)))
    node.step(Message(MessageType.SNAPSHOT, 1, 2, term=1, snapshot=Snapshot(meta)))
    return node


def compacted() -> RaftNode:
    node = with_log(leader(1, 2, 3, learners=(4,)))
    node.log.compact(2)
    return node


FOLLOWERS: dict[str, Callable[[], RaftNode]] = {
    "follower": lambda: with_log(follower(1, 2, 3, learners=(4,))),
    "learner": lambda: with_log(follower(2, 3, learners=(1, 4))),
    "removed": lambda: with_log(follower(2, 3, learners=(4,))),
    "with busy disk": with_busy_disk,
    "with snapshot": with_snapshot,
}
CANDIDATES: dict[str, Callable[[], RaftNode]] = {"pre-candidate": pre_candidate, "candidate": asking}
LEADERS: dict[str, Callable[[], RaftNode]] = {
    "leader": lambda: with_log(leader(1, 2, 3, learners=(4,))),
    "handing over": handing_over,
    "compacted": compacted,
}
STATES = FOLLOWERS | CANDIDATES | LEADERS | {"new": make_node, "without leader": without_leader}


def state_of(node: RaftNode) -> list[object]:
    """All that a message may change."""
    log, lead = node.log, node._leadership
    return [
        (node.term, node._vote, node.role, node.leader, node.transferee, node.configuration, node._parked),
        (list(log._entries), log.compacted, log.compacted_term, log.committed, log.applied, log.stable, log.snapshot),
        {
            member: (each.describe(False), each.sent_commit, each.is_paused_by_probe, list(each.inflight))
            for member, each in node.progress.items()
        },
        {name: list(value) if isinstance(value, list) else value for name, value in vars(node._outbox).items()},
        dict(node._candidacy._votes) if node._candidacy else None,
        (lead.pending_conf_index, list(lead._reads.waiting), len(lead._reads._rounds)) if lead else None,
        node._election_elapsed,
    ]


# --- inputs ----------------------------------------------------------------------------------------------


def usual(kind: MessageType, node: RaftNode, sender: int = 2, term: int | None = None) -> Message:
    """A message that the node would take seriously, if it were in the state for it."""
    term = node.term if term is None else term
    last = node.log.last_index
    message = Message(kind, 1, sender, 0 if kind in FORWARDED else term)
    match kind:
        case MessageType.PROPOSE | MessageType.READ_INDEX | MessageType.READ_INDEX_RESPONSE:
            message.entries = (Entry(0, 0, b"c"),)
        case MessageType.APPEND:
            message.index, message.log_term = last, node.log.last_term
            message.entries = (Entry(term, last + 1, b"x"),)
        case MessageType.VOTE | MessageType.PRE_VOTE:
            message.index, message.log_term = last + 5, min(node.log.last_term, term)
        case MessageType.SNAPSHOT:
            message.snapshot = Snapshot(SnapshotMeta(last + 50, max(term, 1), ConfState((1, 2, 3))))
        case MessageType.APPEND_RESPONSE:
            message.index = last
        case _:
            pass
    return message


def said_by_nobody(node: RaftNode) -> Iterator[tuple[str, Message]]:
    """What makes no sense to anybody, in this node's term and in a later one."""
    for term in (max(node.term, 1), node.term + 3):
        for kind in MessageType:
            yield f"{kind.name} of nobody", usual(kind, node, 0, term)
            if kind is not MessageType.TRANSFER_LEADER:
                yield f"{kind.name} of the node itself", usual(kind, node, 1, term)
            if kind not in FORWARDED:
                yield f"{kind.name} without a term", usual(kind, node, 2, 0)
                yield (
                    f"{kind.name} with a log term of the future",
                    replace(usual(kind, node, 2, term), log_term=term + 1),
                )
        for kind in ANSWERS:
            yield f"{kind.name} of a stranger", usual(kind, node, STRANGER, term)
            yield f"{kind.name} of a stranger that refuses", replace(usual(kind, node, STRANGER, term), reject=True)
        for name, entries in odd_entries(node.log.last_index, node.log.last_term, term):
            yield f"APPEND with {name}", replace(usual(MessageType.APPEND, node, 2, term), entries=entries)
        for name, snapshot in odd_snapshots(term):
            yield f"SNAPSHOT {name}", replace(usual(MessageType.SNAPSHOT, node, 2, term), snapshot=snapshot)
        for count in (0, 2):
            entries = [Entry(0, 0, b"c")] * count
            answer = usual(MessageType.READ_INDEX_RESPONSE, node, 2, term)
            yield f"READ_INDEX_RESPONSE with {count} entries", replace(answer, entries=entries)
    for kind in FORWARDED:
        for term in (0, HUGE):
            yield f"{kind.name} of nothing, term {term}", replace(usual(kind, node), term=term, entries=())


def odd_entries(last: int, last_term: int, term: int) -> Iterator[tuple[str, list[Entry]]]:
    """Entries that can not follow the end of the log in a message of ``term``."""

    def at(*places: tuple[int, int]) -> list[Entry]:
        return [Entry(entry_term, last + offset, b"x") for entry_term, offset in places]

    yield "a hole before", at((term, 2))
    yield "a hole", at((term, 1), (term, 3))
    yield "a hole that is made up for", at((term, 1), (term, 7), (term, 3))
    yield "an entry twice", at((term, 1), (term, 1))
    yield "entries backwards", at((term, 2), (term, 1))
    yield "an entry from the log", at((term, 0), (term, 1))
    yield "entries of index 0", [Entry(term, 0, b"x")]
    yield "an entry of no term", at((0, 1))
    yield "an entry of the future", at((term, 1), (term + 1, 2))
    if last_term > 1 or term > 1:
        yield "terms that fall", at((term, 1), (term - 1, 2))
    if last_term > 1:
        yield "a term that falls behind the log", at((last_term - 1, 1))


def odd_snapshots(term: int) -> Iterator[tuple[str, Snapshot | None]]:
    """Snapshots that no leader of ``term`` has taken."""
    yield "without one", None
    for name, snapshot_term, state in (
        ("of no term", 0, ConfState((1, 2, 3))),
        ("of the future", term + 1, ConfState((1, 2, 3))),
        ("of nobody", term, ConfState()),
        ("of learners", term, ConfState((), (1, 2))),
        ("of member 0", term, ConfState((0, 1, 2))),
        ("of voters that learn", term, ConfState((1, 2), (1,))),
        ("of outgoing voters that learn", term, ConfState((2,), (1,), voters_outgoing=(1, 2))),
        ("of outgoing voters alone", term, ConfState((), (), voters_outgoing=(1, 2))),
        ("of next learners that did not vote", term, ConfState((1, 2), (), voters_outgoing=(2,), learners_next=(3,))),
        ("of next learners that vote on", term, ConfState((1, 2), (), voters_outgoing=(1, 2), learners_next=(1,))),
        ("of a joint state that ends and is none", term, ConfState((1, 2), auto_leave=True)),
    ):
        yield name, Snapshot(SnapshotMeta(50, snapshot_term, state))


def said_to_the_wrong_one(name: str, node: RaftNode) -> Iterator[tuple[str, Message]]:
    """What makes no sense to a node in this state, all of it in its own term."""
    last = node.log.last_index
    everything = {kind: usual(kind, node) for kind in MessageType}
    asked_of_followers = (MessageType.APPEND, MessageType.HEARTBEAT, MessageType.SNAPSHOT, MessageType.TIMEOUT_NOW)
    ignored: list[Message] = []
    if name in FOLLOWERS:
        ignored += [usual(kind, node, 3) for kind in (*asked_of_followers, MessageType.READ_INDEX_RESPONSE)]
        ignored += [everything[kind] for kind in ANSWERS if kind is not MessageType.READ_INDEX_RESPONSE]
        if name in ("learner", "removed", "with snapshot"):
            ignored.append(everything[MessageType.TIMEOUT_NOW])
    elif name in CANDIDATES:
        other = MessageType.VOTE_RESPONSE if name == "pre-candidate" else MessageType.PRE_VOTE_RESPONSE
        ignored += [everything[kind] for kind in (*FORWARDED, MessageType.TRANSFER_LEADER, MessageType.TIMEOUT_NOW)]
        ignored += [everything[kind] for kind in ANSWERS if "VOTE" not in kind.name]
        ignored.append(everything[other])
        ignored.append(usual(MessageType.PRE_VOTE_RESPONSE, node, 2, node.term + 5))  # of another term's campaign
    elif name in LEADERS:
        ignored += [everything[kind] for kind in (*asked_of_followers, *ANSWERS) if kind not in REAL_ANSWERS]
        ignored += [usual(MessageType.TRANSFER_LEADER, node, target) for target in (4, STRANGER)]
        for index in (last + 1, HUGE):
            ignored.append(replace(everything[MessageType.APPEND_RESPONSE], index=index))
        for hint in (0, last, HUGE):  # it has acknowledged entry 2 before
            ignored.append(replace(everything[MessageType.APPEND_RESPONSE], index=2, reject=True, reject_hint=hint))
    yield from ((f"{message}", message) for message in ignored)


REAL_ANSWERS = (MessageType.APPEND_RESPONSE, MessageType.HEARTBEAT_RESPONSE)


class TableTests(SynchronousTestCase):
    def test_what_nobody_says_changes_nothing(self) -> None:
        """In every state, what contradicts itself is as if it had not come."""
        tried = 0
        for state, make in STATES.items():
            node = make()
            before = state_of(node)
            for name, message in said_by_nobody(node):
                self.assertFalse(is_sound(message) and message.sender == 2, f"{name} is sound")
                node.step(message)
                self.assertEqual(state_of(node), before, f"{name}, to a {state}")
                tried += 1
        self.assertGreater(tried, 2000)

    def test_what_is_said_to_the_wrong_one_changes_nothing(self) -> None:
        """In every role, what is meant for another one, or denied by what is known, is as if it had not come."""
        tried = 0
        for state, make in (FOLLOWERS | CANDIDATES | LEADERS).items():
            for name, message in said_to_the_wrong_one(state, make()):
                self.assertTrue(is_sound(message), name)
                node = make()
                before = state_of(node)
                node.step(message)
                self.assertEqual(state_of(node), before, f"{name}, to a {state}")
                tried += 1
        self.assertGreater(tried, 100)

    def test_usual_messages_do_change_something(self) -> None:
        """The other half of the table: what fits the state is taken, so that the tests above mean something."""
        for state, kind, sender, term in (
            ("follower", MessageType.APPEND, 2, 1),
            ("follower", MessageType.HEARTBEAT, 2, 1),
            ("follower", MessageType.SNAPSHOT, 2, 1),
            ("follower", MessageType.TIMEOUT_NOW, 2, 1),
            ("follower", MessageType.READ_INDEX_RESPONSE, 2, 1),
            ("follower", MessageType.PROPOSE, 3, 0),
            ("follower", MessageType.READ_INDEX, STRANGER, 0),
            ("follower", MessageType.TRANSFER_LEADER, 3, 1),
            ("follower", MessageType.VOTE, 3, 1),
            ("with busy disk", MessageType.SNAPSHOT, 2, 1),
            ("new", MessageType.APPEND, STRANGER, 4),
            ("new", MessageType.HEARTBEAT, STRANGER, 4),
            ("without leader", MessageType.VOTE, STRANGER, 2),
            ("without leader", MessageType.PRE_VOTE, STRANGER, 2),
            ("pre-candidate", MessageType.PRE_VOTE_RESPONSE, 2, 2),
            ("candidate", MessageType.VOTE_RESPONSE, 2, 1),
            ("candidate", MessageType.APPEND, STRANGER, 1),
            ("leader", MessageType.APPEND_RESPONSE, 2, 1),
            ("leader", MessageType.HEARTBEAT_RESPONSE, 2, 1),
            ("leader", MessageType.PROPOSE, STRANGER, 0),
            ("leader", MessageType.READ_INDEX, STRANGER, 0),
            ("leader", MessageType.TRANSFER_LEADER, 3, 1),
            ("handing over", MessageType.TRANSFER_LEADER, 1, 1),
        ):
            node = STATES[state]()
            before = state_of(node)
            node.step(usual(kind, node, sender, term))
            self.assertNotEqual(state_of(node), before, f"{kind.name}, to a {state}")

    def test_snapshot_that_is_of_no_use_is_answered(self) -> None:
        """etcd raft.go, handleSnapshot: what is old, or does not know the node, is answered and not taken."""
        for index, state in ((0, ConfState((1, 2))), (2, ConfState((1, 2))), (50, ConfState((2, 3)))):
            for name in ("follower", "without leader", "new"):
                node = STATES[name]()
                before = node.log.last_index, node.commit, node.configuration
                snapshot = Snapshot(SnapshotMeta(index, 1, state))
                if name == "new" and index == 2:
                    continue
                node.step(Message(MessageType.SNAPSHOT, 1, 2, term=max(node.term, 1), snapshot=snapshot))
                (answer,) = [message for message in sent_in(settle(node)) if message.to == 2]
                self.assertEqual((answer.type, answer.index), (MessageType.APPEND_RESPONSE, node.commit))
                self.assertEqual((node.log.last_index, node.commit, node.configuration), before)

    def test_commit_index_beyond_the_log(self) -> None:
        """A leader that knows the node to have what it has not: entries were lost, and the member stops, as etcd's."""
        for name in ("follower", "learner", "without leader", "new"):
            node = STATES[name]()
            commit = node.log.last_index + 1
            message = Message(MessageType.HEARTBEAT, 1, 2, term=max(node.term, 1), commit=commit)
            before = node.commit
            self.assertRaises(InvariantError, node.step, message)
            self.assertEqual(node.commit, before)

    def test_commit_index_of_an_append_goes_no_further_than_it(self) -> None:
        """Raft §5.3: an append may say that much is committed; it counts up to its own last entry."""
        node = STATES["follower"]()
        node.step(replace(usual(MessageType.APPEND, node), commit=HUGE))
        self.assertEqual((node.commit, node.log.last_index), (4, 4))

    def test_what_came_during_a_sync_is_looked_at_afterwards(self) -> None:
        """A snapshot that waits for the disk, and is out of date by then, is dropped then."""
        node = STATES["with busy disk"]()
        node.step(usual(MessageType.SNAPSHOT, node))
        node.step(Message(MessageType.HEARTBEAT, 1, 3, term=2))
        taken = node._taken
        assert taken is not None
        node.advance(taken)
        self.assertEqual((node.leader, node.log.snapshot), (3, None))

    def test_absurd_numbers(self) -> None:
        """The largest numbers of the wire, in each field of each message, break nothing but a lost log."""
        for state, make in STATES.items():
            for kind in MessageType:
                for fields in absurd(kind):
                    node = make()
                    message = replace(usual(kind, node, 2, max(node.term, 1)), **fields)
                    try:
                        node.step(message)
                    except InvariantError:
                        self.assertIs(kind, MessageType.HEARTBEAT)
                        continue
                    node.tick()
                    for sent in sent_in(settle(node)) if node._taken is None else ():
                        self.assertEqual(decode_message(encode_message(sent)), as_read(sent), f"{message} to a {state}")


def absurd(kind: MessageType) -> Iterator[dict[str, Any]]:
    for name in ("term", "index", "log_term", "commit", "reject_hint"):
        yield {name: HUGE}
        yield {name: HUGE, "term": HUGE}
        yield {name: HUGE, "term": HUGE, "reject": True}
    yield {"index": HUGE, "log_term": HUGE, "commit": HUGE, "reject_hint": HUGE, "term": HUGE, "reject": True}
    yield {"context": bytes(1000)}
    yield {"context": b"\xff" * 8}
    if kind in (MessageType.APPEND, MessageType.PROPOSE):
        yield {"index": HUGE - 1, "term": HUGE, "entries": [Entry(HUGE, HUGE, b"x")]}
