"""Many connections read in one turn: the poller alone, over socket pairs."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable
from typing import Any, cast

from twisted.internet import reactor as trial_reactor  # noqa: TID251  the one that trial runs
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from twistedkv.protocols import poller
from twistedkv.protocols.poller import MOST_HELD_S, SUPPORTED, Poller
from twistedkv.protocols.turn import Turn

reactor: Any = trial_reactor
NO_EPOLL = None if SUPPORTED else "there is no epoll here"


class Told:
    """A connection of a poller that does nothing but call."""

    def __init__(self, readable: Callable[[], object]) -> None:
        self._readable = readable
        self.reasons: list[Failure] = []

    def readable(self) -> None:
        self._readable()

    def lost(self, reason: Failure) -> None:
        self.reasons.append(reason)


class PollerTests(SynchronousTestCase):
    skip = NO_EPOLL

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.turn = Turn(self.reactor)
        self.poller = Poller(cast(Any, self.reactor), self.turn)
        self.called: list[int] = []
        self.sockets: dict[int, socket.socket] = {}

    def pair(self, add: bool = True) -> tuple[int, socket.socket]:
        """A descriptor, whose callback notes its number, and what it is connected to."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        self.addCleanup(self.poller.remove, ours.fileno())
        if add:
            self.add(ours.fileno())
        self.sockets[ours.fileno()] = ours
        return ours.fileno(), theirs

    def add(self, descriptor: int) -> None:
        self.poller.add(descriptor, Told(lambda: self.called.append(descriptor)))

    def test_is_what_a_reactor_reads(self) -> None:
        """The reactor can treat it as any other descriptor."""
        verifyObject(IReadDescriptor, self.poller)

    def test_only_what_is_readable_is_read(self) -> None:
        """A connection that has nothing is left alone."""
        self.pair()
        two, other = self.pair()
        self.poller.doRead()
        self.assertEqual(self.called, [])
        other.send(b"x")
        self.poller.doRead()
        self.assertEqual(self.called, [two])

    def marking(self, count: int, seconds: float) -> list[str]:
        """What happens when so many connections that are readable have answers, after so many seconds of work each."""
        happened: list[str] = []
        now_s = [0.0]
        self.patch(poller, "perf_counter", lambda: now_s[0])

        class Answering:
            def __init__(self, name: str) -> None:
                self.name = name

            def flush(self) -> None:
                happened.append(f"answer {self.name}")

            def abort(self) -> None:
                raise AssertionError("nothing failed")

        def read(name: str) -> None:
            now_s[0] += seconds
            happened.append(f"read {name}")
            self.turn.mark(Answering(name))

        for name in "abcd"[:count]:
            descriptor, other = self.pair(add=False)
            self.poller.add(descriptor, Told(lambda name=name: read(name)))  # type: ignore[misc]
            other.send(b"x")
        self.poller.doRead()
        return happened

    def test_answers_go_out_together(self) -> None:
        """What is answered at once goes out behind the last read."""
        self.assertEqual(self.marking(2, 0.0001), ["read a", "read b", "answer a", "answer b"])

    def test_answers_do_not_wait_long(self) -> None:
        """What was answered goes out in between, when the others take their time."""
        expected = ["read a", "read b", "answer a", "answer b", "read c", "read d", "answer c", "answer d"]
        self.assertEqual(self.marking(4, MOST_HELD_S * 0.6), expected)

    def test_all_are_read_in_one_turn(self) -> None:
        """However many have something, each is read once a turn."""
        pairs = [self.pair() for _ in range(40)]
        for _, other in pairs:
            other.send(b"x")
        self.poller.doRead()
        self.assertEqual(sorted(self.called), sorted(descriptor for descriptor, _ in pairs))

    def test_what_is_left_comes_again(self) -> None:
        """A connection that was not read to its end is read in the next turn, and no more once it is."""
        self.pair()
        one, other = self.pair()
        other.send(b"xx")
        for _ in range(3):
            self.poller.doRead()
            self.sockets[one].setblocking(False)
            with contextlib.suppress(BlockingIOError):
                self.sockets[one].recv(1)
        self.assertEqual(self.called, [one, one])

    def test_the_end_is_readable(self) -> None:
        """A connection whose peer is gone is read, so that it learns of it."""
        one, other = self.pair()
        other.close()
        self.poller.doRead()
        self.assertEqual(self.called, [one])

    def test_who_is_removed_is_not_read(self) -> None:
        """After its removal a connection neither is read nor wakes the reactor, until it is added again."""
        (one, first), _ = self.pair(), self.pair()
        first.send(b"x")
        self.assertEqual(select.select([self.poller], [], [], 0)[0], [self.poller])
        self.poller.remove(one)
        self.poller.remove(one)  # a second time changes nothing
        self.assertEqual(select.select([self.poller], [], [], 0)[0], [])
        self.poller.doRead()
        self.assertEqual(self.called, [])
        self.add(one)
        self.poller.doRead()
        self.assertEqual(self.called, [one])

    def test_who_is_added_again_stays(self) -> None:
        """A second addition does not replace the first."""
        one, other = self.pair()
        self.poller.add(one, Told(lambda: self.fail("replaced")))
        other.send(b"x")
        self.poller.doRead()
        self.assertEqual(self.called, [one])

    def test_who_is_ended_by_another_is_not_read(self) -> None:
        """When the first one read ends all others of its turn, the last included, none of them is read any more."""
        pairs = [self.pair(add=False) for _ in range(3)]

        def end_all(descriptor: int) -> None:
            self.called.append(descriptor)
            for each, _ in pairs:
                self.poller.remove(each)

        for descriptor, other in pairs:
            self.poller.add(descriptor, Told(lambda each=descriptor: end_all(each)))  # type: ignore[misc]
            other.send(b"x")
        self.poller.doRead()
        self.assertEqual(len(self.called), 1)
        self.assertEqual((self.reactor.readers, self.poller.fileno()), (set(), -1))

    def test_descriptor_only_while_there_are_connections(self) -> None:
        """The first connection brings it into the reactor, the last one out of it again, and nothing stays open."""
        self.assertEqual((self.reactor.readers, self.poller.fileno()), (set(), -1))
        for _ in range(2):
            (one, _), (two, second) = self.pair(), self.pair()
            epoll = self.poller.fileno()
            self.assertEqual(self.reactor.readers, {self.poller})
            self.poller.remove(one)
            self.assertEqual((self.reactor.readers, self.poller.fileno()), ({self.poller}, epoll))
            second.send(b"x")
            self.poller.doRead()
            self.poller.remove(two)
            self.assertEqual((self.reactor.readers, self.poller.fileno()), (set(), -1))
            self.assertRaises(OSError, os.fstat, epoll)
            self.assertEqual(self.called.pop(), two)

    def test_number_of_a_closed_connection_is_free(self) -> None:
        """Who was closed before its removal is forgotten; a new one of the same number is read as any other."""
        (one, _), (two, second) = self.pair(), self.pair()
        self.sockets[one].close()
        self.poller.remove(one)
        again, other = self.pair()
        self.assertEqual(again, one)
        second.send(b"x")
        other.send(b"x")
        self.poller.doRead()
        self.assertEqual(sorted(self.called), sorted([two, again]))

    def test_failed_addition_leaves_nothing(self) -> None:
        """What cannot be waited for is refused, and is no reason to be in the reactor."""
        one, _ = self.pair(add=False)
        self.sockets[one].close()
        self.assertRaises(OSError, self.add, one)
        self.assertEqual((self.reactor.readers, self.poller.fileno()), (set(), -1))


# --- real connections ------------------------------------------------------------------------------------------------
