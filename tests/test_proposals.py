"""Requests on their way to Raft: batches, time-outs, and what a change of leader means for whom."""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.nopeers import NoPeers
from tests.station import Answer
from twistedkv import proposals
from twistedkv.errors import (
    ConnectionLostTimeoutError,
    KVError,
    LeaderChangedError,
    LeaderFailureTimeoutError,
    MemberNotFoundError,
    NotLeaderError,
    RequestTimeoutError,
    RequestTooLargeError,
    TooManyRequestsError,
)
from twistedkv.identity import RequestIds
from twistedkv.members import MemberInfo, Membership
from twistedkv.metrics import Metrics
from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.raft_pb2 import ConfChange, ConfChangeAddLearnerNode
from twistedkv.pb.rpc_pb2 import PutRequest
from twistedkv.proposals import Proposals
from twistedkv.raft.config import Config
from twistedkv.raft.log import RaftLog
from twistedkv.raft.messages import ConfState, Entry, EntryType, HardState, Message, MessageType
from twistedkv.raft.node import RaftNode
from twistedkv.v2request import PlainSet, decode_entry, encode_entry
from twistedkv.waiting import MOST_NOTED_BYTES, Waiter, WaitingRoom

ME, OTHER, THIRD = 1, 2, 3
TIMEOUT_S, ELECTION_S = 7.0, 1.0


class Surroundings:
    """Who is in the cluster, and who is heard of."""

    def __init__(self, receiver: Any = None) -> None:
        self.peers = NoPeers(receiver)
        self.membership = Membership({each: MemberInfo(each, (f"http://192.0.2.{each}:1",)) for each in (1, 2, 3)})


class Again:
    """A waiter that asks again from its answer, once."""

    def __init__(self, asked: Proposals, waiter: Waiter) -> None:
        self._asked = asked
        self._waiter = waiter

    def reply(self, message: bytes) -> None:
        raise AssertionError("nothing is applied here")

    def fail(self, error: BaseException) -> None:
        self._asked.add(put(b"again"), self._waiter)


def put(key: bytes) -> bytes:
    """A request as services make it."""
    return InternalRaftRequest(put=PutRequest(key=key)).SerializeToString()


class ProposalsCase(SynchronousTestCase):
    """A member of three, which follows or leads as a test says."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.stirred = 0
        self.surroundings: Any = Surroundings()
        self.metrics = Metrics()
        self.waiting = WaitingRoom(TIMEOUT_S)
        self.node = RaftNode(
            Config(ME, Random(1)),
            RaftLog([Entry(1, 1, b"")]),
            HardState(1, 0, 1),
            ConfState((ME, OTHER, THIRD)),
            1,
        )
        self.proposals = Proposals(
            self.node,
            self.waiting,
            RequestIds(ME, 0).next,
            self.clock,
            TIMEOUT_S,
            ELECTION_S,
            1000,
            self.metrics,
            self.stir,
        )

    def stir(self) -> None:
        self.stirred += 1

    def add(self, key: bytes = b"k") -> Answer:
        answer = Answer()
        self.proposals.add(put(key), answer)
        return answer

    def drive(self) -> list[Message]:
        """Do what Raft says; returns what it sends."""
        sent: list[Message] = []
        while self.node.has_ready():
            ready = self.node.ready()
            if ready.soft_state is not None and ready.soft_state.leader:
                self.proposals.leader_began()
            sent += [*ready.messages, *ready.responses]
            self.node.advance(ready)
        return sent

    def follow(self, leader: int, term: int) -> None:
        """Hear from a leader."""
        self.node.step(Message(MessageType.HEARTBEAT, ME, sender=leader, term=term))

    def lead(self) -> None:
        """Win an election."""
        self.node.campaign()
        self.drive()
        for kind in (MessageType.PRE_VOTE_RESPONSE, MessageType.VOTE_RESPONSE):
            term = self.node.term + (kind is MessageType.PRE_VOTE_RESPONSE)
            self.node.step(Message(kind, ME, sender=OTHER, term=term))
            self.drive()

    def forwarded(self) -> list[bytes]:
        """The keys of the puts that were sent on to a leader since the last call."""
        sent = [message for message in self.drive() if message.type is MessageType.PROPOSE]
        return [
            InternalRaftRequest.FromString(entry.data).put.key
            for message in sent
            for entry in message.entries
            if entry.type is EntryType.NORMAL
        ]

    def assert_error(self, answer: Answer, kind: type[KVError]) -> None:
        self.assertIs(type(answer.error), kind)


class BatchTests(ProposalsCase):
    """What goes to Raft, and when."""

    def test_a_turn_is_one_batch(self) -> None:
        """What was asked in a turn goes to the leader in one message, in order, each with an id of its own."""
        self.follow(OTHER, 2)
        self.drive()
        for key in (b"a", b"b", b"c"):
            self.add(key)
        self.assertTrue(self.proposals.any)
        self.proposals.give()
        self.assertFalse(self.proposals.any)
        (message,) = [each for each in self.drive() if each.type is MessageType.PROPOSE]
        self.assertEqual(message.to, OTHER)
        requests = [InternalRaftRequest.FromString(entry.data) for entry in message.entries]
        self.assertEqual([request.put.key for request in requests], [b"a", b"b", b"c"])
        ids = [request.header.ID for request in requests]
        self.assertEqual(sorted(set(ids)), ids)
        self.proposals.give()
        self.assertEqual(self.forwarded(), [])

    def test_a_leader_appends(self) -> None:
        """The leader's own requests become entries of its log."""
        self.lead()
        self.add(b"a")
        self.proposals.give()
        self.assertEqual(InternalRaftRequest.FromString(self.node.log.slice(3, 3)[0].data).put.key, b"a")

    def test_without_a_leader_they_are_kept(self) -> None:
        """What is asked while nobody leads is given to the next leader."""
        self.add(b"a")
        self.proposals.give()
        self.assertTrue(self.proposals.any)
        self.add(b"b")
        self.follow(OTHER, 2)
        self.drive()
        self.proposals.give()
        self.assertEqual(self.forwarded(), [b"a", b"b"])

    def test_while_a_leader_hands_over_they_are_kept(self) -> None:
        """A leader that is handing over gives what it is asked to its successor."""
        self.lead()
        self.drive()
        self.node.transfer_leader(OTHER)
        self.add(b"a")
        self.proposals.give()
        self.assertTrue(self.proposals.any)
        self.follow(OTHER, 3)
        self.drive()
        self.proposals.give()
        self.assertEqual(self.forwarded(), [b"a"])

    def test_too_large(self) -> None:
        """A request over the limit is refused and takes no room."""
        answer = Answer()
        self.proposals.add(put(b"k" * 1000), answer)
        self.assert_error(answer, RequestTooLargeError)
        self.assertFalse(self.proposals.any)
        self.assertEqual(len(self.waiting), 0)

    def test_requests_for_v2_keys(self) -> None:
        """A request for keys of v2 is an entry of etcd's older form, its id first; it may be as long as a form."""
        answer, long = Answer(), b"v" * (10 << 20)
        self.follow(OTHER, 2)
        self.drive()
        self.proposals.add_v2(Request(Method="PUT", Path=b"/1/k", Val=long).SerializeToString(), answer)
        self.proposals.add_v2(Request(Val=long + b"v" * (2 << 20)).SerializeToString(), refused := Answer())
        self.assert_error(refused, RequestTooLargeError)
        self.proposals.give()
        (message,) = [each for each in self.drive() if each.type is MessageType.PROPOSE]
        (entry,) = message.entries
        found = decode_entry(entry.data)
        assert isinstance(found, Request)
        self.assertEqual((found.Path, found.Val), (b"/1/k", long))
        self.assertIs(self.waiting.take_v2(found.ID), answer)

    def test_plain_sets_are_noted(self) -> None:
        """What the entry of a plain set says is known by its bytes, with its id, until it is applied; of others not."""
        self.lead()
        first = self.node.log.last_index + 1
        fields = Request(Method="PUT", Path=b"/1/\xff", Val=b"v").SerializeToString()
        plain = ("/1/\udcff", "v")
        answers = [Answer() for _ in range(3)]
        self.proposals.add_v2(fields, answers[0], plain=plain)
        self.proposals.add_v2(fields, answers[1])
        self.proposals.add_v2(fields, answers[2], plain=plain)
        self.proposals.give()
        entries = self.node.log.slice(first, first + 2)
        requests = [decode_entry(entry.data) for entry in entries]
        assert all(isinstance(request, Request) for request in requests)
        ids = [request.ID for request in requests if isinstance(request, Request)]
        self.assertEqual([entry.data for entry in entries], [encode_entry(each, fields) for each in ids])
        self.assertEqual(
            [self.waiting.take_set(entry.data) for entry in entries],
            [PlainSet(ids[0], *plain), None, PlainSet(ids[2], *plain)],
        )
        self.assertEqual([self.waiting.take_set(entry.data) for entry in entries], [None] * 3)
        self.assertEqual([self.waiting.take_v2(each) for each in ids], answers)

    def test_long_sets_are_not_noted(self) -> None:
        """An entry of so many bytes is, and one of a byte more is decoded like any other."""
        self.lead()
        index = self.node.log.last_index
        bare = Request(Method="PUT", Path=b"/1/k", Val=bytes(1000)).SerializeToString()
        self.proposals.add_v2(bare, Answer())
        self.proposals.give()
        rest = len(self.node.log.slice(index + 1, index + 1)[0].data) - 1000  # lengths have two bytes from 128 on
        for more, noted in ((0, True), (1, False)):
            value = "x" * (MOST_NOTED_BYTES - rest + more)
            fields = Request(Method="PUT", Path=b"/1/k", Val=value.encode()).SerializeToString()
            self.proposals.add_v2(fields, Answer(), plain=("/1/k", value))
            self.proposals.give()
            (entry,) = self.node.log.slice(index + 2 + more, index + 2 + more)
            self.assertEqual(len(entry.data), MOST_NOTED_BYTES + more)
            found = self.waiting.take_set(entry.data)
            self.assertEqual(found and found.value, value if noted else None)

    def test_refused_sets_are_not_noted(self) -> None:
        """Nobody will ever apply them."""
        noted: list[bytes] = []
        self.patch(self.waiting, "note_set", lambda entry, plain: noted.append(entry))
        self.patch(proposals, "MOST_BYTES", 10)
        fields = Request(Method="PUT", Path=b"/1/k", Val=b"v").SerializeToString()
        answers = [Answer() for _ in range(3)]
        for answer, leading in zip(answers, (True, False, False), strict=True):
            self.proposals.add_v2(fields, answer, leading=leading, plain=("/1/k", "v"))
        self.assert_error(answers[0], NotLeaderError)
        self.assertFalse(answers[1].done)
        self.assert_error(answers[2], TooManyRequestsError)
        self.assertEqual(len(noted), 1)

    def test_too_many(self) -> None:
        """No more than so many bytes wait for Raft; there is room again once it takes some, or their time is up."""
        self.patch(proposals, "MOST_BYTES", 100)
        first = [self.add(b"k" * 60) for _ in range(2)]
        self.assert_error(self.add(), TooManyRequestsError)
        self.clock.advance(TIMEOUT_S)
        self.proposals.expire(self.surroundings)
        self.assertTrue(all(answer.done for answer in first))
        more = [self.add(b"k" * 60) for _ in range(2)]
        self.assert_error(self.add(), TooManyRequestsError)
        self.assertFalse(any(answer.done for answer in more))
        self.follow(OTHER, 2)
        self.proposals.give()
        self.assertFalse(self.add().done)


class LeaderTests(ProposalsCase):
    """What the first entry of a leader says of what an earlier one was given."""

    def test_what_an_earlier_leader_was_given_is_lost(self) -> None:
        """When a new leader's first entry is applied, whoever waits for what its predecessor was given is told so."""
        self.follow(OTHER, 2)
        self.drive()
        lost = [self.add(), self.add()]
        self.proposals.give()
        kept = self.add()
        self.follow(THIRD, 3)
        self.drive()
        self.proposals.term_began(2)  # of the former leader, late
        self.assertFalse(any(answer.done for answer in lost))
        self.proposals.give()
        given = self.add()
        self.proposals.give()
        self.proposals.term_began(3)
        for answer in lost:
            self.assert_error(answer, LeaderFailureTimeoutError)
        self.assertFalse(kept.done or given.done)
        self.assertEqual(self.metrics.proposals_failed, 2)

    def test_what_a_leader_is_given_before_it_is_told_of(self) -> None:
        """What is given to a leader before the drive loop says that it leads is not counted as its predecessor's."""
        answer = self.add()
        self.follow(OTHER, 2)
        self.proposals.give()
        self.drive()
        self.proposals.term_began(2)
        self.assertFalse(answer.done)

    def test_the_word_of_a_leader_is_not_sent_on(self) -> None:
        """What only a leader may say goes into its own log in its own term, or nowhere: another one has led since."""
        self.lead()
        answers = [Answer(), Answer()]
        self.proposals.add(put(b"in time"), answers[0], leading=True)
        self.proposals.give()
        self.assertEqual(InternalRaftRequest.FromString(self.node.log.slice(3, 3)[0].data).put.key, b"in time")
        self.proposals.add(put(b"too late"), answers[1], leading=True)
        kept = self.add(b"anybody's")
        self.follow(THIRD, self.node.term + 1)
        self.proposals.give()
        self.assertEqual(self.forwarded(), [b"anybody's"])
        self.assert_error(answers[1], LeaderChangedError)
        self.assertFalse(answers[0].done or kept.done)
        refused = Answer()
        self.proposals.add(put(b"much too late"), refused, leading=True)
        self.assert_error(refused, NotLeaderError)

    def test_the_word_of_a_leader_whose_time_is_up(self) -> None:
        """It is withdrawn as any other, and not a second time when another member leads."""
        self.lead()
        answer = Answer()
        self.proposals.add(put(b"k"), answer, leading=True)
        self.clock.advance(TIMEOUT_S)
        self.proposals.expire(self.surroundings)
        self.assertTrue(answer.done)
        self.add(b"later")
        self.follow(THIRD, self.node.term + 1)
        self.proposals.give()
        self.assertEqual(self.forwarded(), [b"later"])

    def test_the_same_leader_known_again(self) -> None:
        """A leader that was not heard of for a while, and leads the same term, loses nothing."""
        self.follow(OTHER, 2)
        self.drive()
        answer = self.add()
        self.proposals.give()
        self.node.forget_leader()
        self.drive()
        self.follow(OTHER, 2)
        self.drive()
        self.proposals.term_began(2)
        self.assertFalse(answer.done)


class TimeoutTests(ProposalsCase):
    """What a client is told whose time is up, as etcd's clients are."""

    def expire(self, after_s: float = TIMEOUT_S) -> None:
        self.clock.advance(after_s)
        self.proposals.expire(self.surroundings)

    def test_nobody_leads(self) -> None:
        """With no leader known it is a time-out; what was not given is never given after that."""
        answer = self.add(b"late")
        self.expire(TIMEOUT_S - 0.1)
        self.assertFalse(answer.done)
        still = self.add(b"still")
        self.expire(0.1)
        self.assert_error(answer, RequestTimeoutError)
        self.assertFalse(still.done)
        self.follow(OTHER, 2)
        self.drive()
        self.proposals.give()
        self.assertEqual(self.forwarded(), [b"still"])
        self.assertEqual(self.metrics.proposals_failed, 1)

    def test_a_leader_elected_meanwhile(self) -> None:
        """A request that began shortly before a leader was elected has most likely gone down with the one before."""
        self.clock.advance(100)
        answer = self.add()
        self.clock.advance(1.9)
        self.follow(OTHER, 2)
        self.drive()
        self.expire(TIMEOUT_S - 1.9)
        self.assert_error(answer, LeaderFailureTimeoutError)

    def test_a_leader_elected_long_after(self) -> None:
        """A leader that came more than two election timeouts after the request has nothing to do with it."""
        self.clock.advance(100)
        answer = self.add()
        self.clock.advance(2.1)
        self.follow(OTHER, 2)
        self.surroundings.peers.active[OTHER] = 1.0
        self.drive()
        self.expire(TIMEOUT_S - 2.1)
        self.assert_error(answer, RequestTimeoutError)

    def test_the_connection_to_the_leader(self) -> None:
        """A follower that was not connected with the leader all the time says that the connection was lost."""
        self.follow(OTHER, 2)
        self.drive()
        self.clock.advance(100)
        for since_s, kind in ((None, ConnectionLostTimeoutError), (101.0, ConnectionLostTimeoutError)):
            answer = self.add()
            if since_s is not None:
                self.surroundings.peers.active[OTHER] = self.clock.seconds() + 1.0
            self.expire()
            self.assert_error(answer, kind)
        self.surroundings.peers.active[OTHER] = 1.0
        answer = self.add()
        self.expire()
        self.assert_error(answer, RequestTimeoutError)

    def test_the_connections_of_a_leader(self) -> None:
        """A leader that was connected with no majority says that connections were lost."""
        self.lead()
        self.clock.advance(100)
        answer = self.add()
        self.expire()
        self.assert_error(answer, ConnectionLostTimeoutError)
        self.surroundings.peers.active[THIRD] = 1.0
        answer = self.add()
        self.expire()
        self.assert_error(answer, RequestTimeoutError)

    def test_a_client_that_asks_again_at_once(self) -> None:
        """Whoever asks again from within the time-out waits anew, and what was not given before is not given."""
        again = Answer()
        self.proposals.add(put(b"first"), Again(self.proposals, again))
        other = self.add(b"other")
        self.expire()
        self.assertTrue(other.done)
        self.assertFalse(again.done)
        self.follow(OTHER, 2)
        self.drive()
        self.proposals.give()
        self.assertEqual(self.forwarded(), [b"again"])


class ChangeTests(ProposalsCase):
    """Changes of the members."""

    def change(self, member: int) -> ConfChange:
        return ConfChange(type=ConfChangeAddLearnerNode, node_id=member)

    def given(self) -> list[int]:
        """The members of the changes that were sent on to a leader since the last call."""
        sent = [message for message in self.drive() if message.type is MessageType.PROPOSE]
        return [ConfChange.FromString(entry.data).node_id for message in sent for entry in message.entries]

    def answer(self, change: ConfChange, error: KVError | None = None) -> None:
        """It was applied, or refused."""
        waiter = self.waiting.take(change.id)
        assert waiter is not None
        if error is None:
            waiter.reply(b"")
        else:
            waiter.fail(error)

    def test_one_at_a_time(self) -> None:
        """A change is given when the one before it is applied or refused; each is answered by itself."""
        self.follow(OTHER, 2)
        self.drive()
        changes = [self.change(member) for member in (4, 5, 6)]
        done = [self.proposals.change_members(change) for change in changes]
        self.assertTrue(self.proposals.any)
        self.proposals.give()
        self.assertEqual(self.given(), [4])
        self.assertFalse(self.proposals.any)
        self.proposals.give()
        self.assertEqual(self.given(), [])
        self.answer(changes[0])
        self.assertEqual(self.stirred, 1)
        self.assertIsNone(self.successResultOf(done[0]))
        self.proposals.give()
        self.assertEqual(self.given(), [5])
        self.answer(changes[1], MemberNotFoundError())
        self.failureResultOf(done[1], MemberNotFoundError)
        self.proposals.give()
        self.answer(changes[2])
        self.successResultOf(done[2])
        self.assertEqual(self.stirred, 2)
        self.assertFalse(self.proposals.any)

    def test_puts_and_changes_go_together(self) -> None:
        """A change waits for no put, nor a put for a change."""
        self.follow(OTHER, 2)
        self.drive()
        self.add(b"k")
        self.proposals.change_members(self.change(4)).addErrback(lambda _: None)
        self.proposals.give()
        sent = [message for message in self.drive() if message.type is MessageType.PROPOSE]
        self.assertEqual(
            [entry.type for message in sent for entry in message.entries], [EntryType.NORMAL, EntryType.CONF_CHANGE]
        )

    def test_without_a_leader_it_is_kept(self) -> None:
        """A change that is asked for while nobody leads is given to the next leader."""
        self.proposals.change_members(self.change(4)).addErrback(lambda _: None)
        self.proposals.give()
        self.assertEqual(self.given(), [])
        self.follow(OTHER, 2)
        self.drive()
        self.proposals.give()
        self.assertEqual(self.given(), [4])

    def test_not_while_another_member_s_is_pending(self) -> None:
        """While a change is in the log and not applied, another one would come to nothing: it waits."""
        self.lead()
        self.node.propose_conf_change(self.change(9))
        self.proposals.change_members(self.change(4)).addErrback(lambda _: None)
        before = self.node.log.last_index
        self.proposals.give()
        self.assertEqual(self.node.log.last_index, before)
        self.assertTrue(self.proposals.any)

    def test_time_is_up(self) -> None:
        """A change whose time is up leaves the queue, wherever it is in it."""
        self.follow(OTHER, 2)
        self.drive()
        first = self.proposals.change_members(self.change(4))
        self.clock.advance(1)
        second = self.proposals.change_members(self.change(5))
        self.proposals.give()
        self.assertEqual(self.given(), [4])
        self.surroundings.peers.active[OTHER] = 0.0
        self.clock.advance(TIMEOUT_S - 1)
        self.proposals.expire(self.surroundings)
        self.failureResultOf(first, RequestTimeoutError)
        self.proposals.give()
        self.assertEqual(self.given(), [5])
        third = self.proposals.change_members(self.change(6))
        self.clock.advance(1)
        self.proposals.expire(self.surroundings)
        self.failureResultOf(second, RequestTimeoutError)
        self.assertNoResult(third)

    def test_a_queued_one_ends_before_the_first(self) -> None:
        """A change that is told of an end while it waits behind another one does not disturb that one."""
        self.follow(OTHER, 2)
        self.drive()
        changes = [self.change(4), self.change(5)]
        done = [self.proposals.change_members(change) for change in changes]
        self.proposals.give()
        self.given()
        self.answer(changes[1], MemberNotFoundError())
        self.failureResultOf(done[1], MemberNotFoundError)
        self.proposals.give()
        self.assertEqual(self.given(), [])
        self.answer(changes[0])
        self.successResultOf(done[0])

    def test_lost_with_its_leader(self) -> None:
        """A change that a lost leader was given is told so, and the next one, which it was not, is given."""
        self.follow(OTHER, 2)
        self.drive()
        lost, queued = (self.proposals.change_members(self.change(member)) for member in (4, 5))
        self.proposals.give()
        self.add(b"k")
        self.proposals.give()
        self.given()
        self.follow(THIRD, 3)
        self.drive()
        self.proposals.term_began(3)
        self.failureResultOf(lost, LeaderFailureTimeoutError)
        self.assertNoResult(queued)
        self.proposals.give()
        self.assertEqual(self.given(), [5])
        queued.addErrback(lambda _: None)
