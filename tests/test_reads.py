"""Linearizable reads: rounds, indexes, time-outs and changes of leader."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedkv.errors import KVError, RequestTimeoutError, StoppedError
from twistedkv.identity import RequestIds
from twistedkv.reads import ReadGate


class ReadGateTests(SynchronousTestCase):
    """Who may read, and when."""

    def setUp(self) -> None:
        self.gate = ReadGate(7.0, RequestIds(1, 0).next)
        self.served: list[str] = []
        self.failed: list[tuple[str, type[KVError]]] = []

    def ask(self, name: str, now_s: float = 0.0) -> None:
        self.gate.ask(lambda: self.served.append(name), lambda error: self.failed.append((name, type(error))), now_s)

    def question(self, now_s: float = 0.0) -> bytes:
        context = self.gate.next_question(now_s)
        assert context is not None
        return context

    def test_a_read_waits_for_the_quorum_and_for_the_state(self) -> None:
        """Thesis §6.4: a read is served when its round is confirmed and the round's index is applied, not before."""
        self.ask("a")
        context = self.question()
        self.gate.applied(100)
        self.assertEqual(self.served, [])
        self.gate.answered(context, 7)
        self.gate.applied(6)
        self.assertEqual(self.served, [])
        self.gate.applied(7)
        self.assertEqual(self.served, ["a"])
        self.assertFalse(self.gate.waiting)

    def test_one_round_serves_all_that_were_asked_before_it(self) -> None:
        """Reads of one turn share a question; one asked after it has to wait for the next."""
        self.ask("a")
        self.ask("b")
        first = self.question()
        self.ask("c")
        self.assertIsNone(self.gate.next_question(0.1))
        self.gate.answered(first, 1)
        self.gate.applied(1)
        self.assertEqual(self.served, ["a", "b"])
        second = self.question()
        self.assertNotEqual(second, first)
        self.gate.answered(second, 1)
        self.gate.applied(1)
        self.assertEqual(self.served, ["a", "b", "c"])

    def test_a_lost_question_is_asked_again(self) -> None:
        """After half a second without an answer the same round is asked again."""
        self.ask("a")
        context = self.question(0.0)
        self.assertIsNone(self.gate.next_question(0.4))
        self.assertEqual(self.gate.next_question(0.5), context)

    def test_an_answer_of_an_earlier_round_counts_for_nothing(self) -> None:
        """An answer that comes twice, or late, does not confirm a later round (etcd-io/raft#397)."""
        self.ask("a")
        first = self.question()
        self.gate.answered(first, 1)
        self.gate.applied(1)
        self.ask("b")
        self.question()
        self.gate.answered(first, 1)
        self.gate.applied(1)
        self.assertEqual(self.served, ["a"])

    def test_a_change_of_leader_begins_the_round_anew(self) -> None:
        """Whoever waits for a leader that is gone is asked for again; confirmed reads are still served."""
        self.ask("confirmed")
        self.gate.answered(self.question(), 5)
        self.ask("asked")
        self.question()
        self.ask("not yet asked")
        self.gate.leader_changed()
        self.gate.applied(5)
        self.assertEqual((self.served, self.failed), (["confirmed"], []))
        again = self.question()
        self.gate.answered(again, 6)
        self.gate.applied(6)
        self.assertEqual((self.served, self.failed), (["confirmed", "asked", "not yet asked"], []))

    def test_nobody_to_ask(self) -> None:
        """A question that nobody took is no round: a new leader does not end it, and the next question takes all."""
        self.ask("a")
        self.question()
        self.gate.not_asked()
        self.ask("b")
        self.gate.leader_changed()
        self.gate.answered(self.question(0.1), 1)
        self.gate.applied(1)
        self.assertEqual((self.served, self.failed), (["a", "b"], []))

    def test_time_outs(self) -> None:
        """A read that gets no answer in 7 s is told so, wherever it waits."""
        self.ask("confirmed", 0.0)
        self.gate.answered(self.question(), 5)
        self.ask("round", 1.0)
        self.question(1.0)
        self.ask("asked", 2.0)
        self.gate.expire(6.9)
        self.assertEqual(self.failed, [])
        self.gate.expire(8.0)
        self.assertEqual(self.failed, [("confirmed", RequestTimeoutError), ("round", RequestTimeoutError)])
        self.gate.expire(9.0)
        self.assertEqual(self.failed[2:], [("asked", RequestTimeoutError)])

    def test_a_sole_voter_serves_everybody(self) -> None:
        """When nobody else can acknowledge a write, all that wait are served."""
        self.ask("round")
        self.question()
        self.ask("asked")
        self.gate.open()
        self.assertEqual(self.served, ["round", "asked"])

    def test_the_end(self) -> None:
        """Everybody is told when the member stops."""
        self.ask("confirmed")
        self.gate.answered(self.question(), 5)
        self.ask("round")
        self.question()
        self.ask("asked")
        self.gate.end(StoppedError())
        self.assertEqual(self.failed, [(name, StoppedError) for name in ("confirmed", "round", "asked")])
        self.assertFalse(self.gate.waiting)
