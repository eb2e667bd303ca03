"""What is told of appends: how many, how large, and how long they took."""

from __future__ import annotations

from itertools import count

from tests.protocols.test_peer import HEARTBEAT, NetworkCase, append
from twistedkv.protocols.msgappv2 import StreamKind
from twistedkv.raft.messages import Message

TICK_S = 0.25  # between two looks at the clock


class PeerAppendTests(NetworkCase):
    def setUp(self) -> None:
        super().setUp()
        self.told, self.told_of_two = self.network.observers[1], self.network.observers[2]
        looks = count()
        self.told.clock_s = lambda: next(looks) * TICK_S

    def test_appends_on_their_stream(self) -> None:
        """All of one write are told together, with the frames' bytes and the time that it took; nothing else counts."""
        self.network.introduce()
        sent, received = dict(self.told.sent), dict(self.told_of_two.received)
        self.one.send([append(2, 1, 0), append(2, 1, 1), Message(HEARTBEAT, 2, 1, 3)])
        self.network.settle()
        ((what, member, size, number),) = self.told.appends
        self.assertEqual((what, member, number), ("written", 2, 2))
        self.assertGreater(size, 200)
        self.assertEqual(self.told.times_s, [TICK_S])
        self.assertEqual(self.told_of_two.appends, [("received", 1, size, 2)])
        self.assertGreater(self.told.sent[2] - sent.get(2, 0), size)  # the heartbeat counts there
        self.assertGreater(self.told_of_two.received[1] - received.get(1, 0), size)

    def test_an_append_in_pieces_has_the_bytes_of_all(self) -> None:
        """However the network cuts it."""
        self.network.introduce()
        self.one.send([append(2, 1, 0, 2000)])
        self.network.settle()
        ((_, _, size, _),) = self.told.appends
        self.assertGreater(size, 200_000)
        self.assertEqual(self.told_of_two.appends, [("received", 1, size, 1)])

    def test_posted_appends(self) -> None:
        """They are timed from the post to its answer; other messages are not."""
        self.one.set_peer(2, [self.network.url(2)])
        self.one.send([append(2, 1, 0), Message(HEARTBEAT, 2, 1, 3)])
        self.network.settle()
        size = self.told.appends[0][2]
        self.assertGreater(size, 100)
        self.assertEqual(self.told.appends, [("sent", 2, size, 1), ("posted", 2, 0, 1)])
        self.assertEqual(self.told.times_s, [TICK_S])
        self.assertEqual(self.told_of_two.appends, [("received", 1, size, 1)])

    def test_posts_that_are_lost(self) -> None:
        """Each append that nobody takes is a failure, whether nobody is there or it is refused."""
        self.network.partition(2)
        self.one.set_peer(2, [self.network.url(2)])
        self.one.send([append(2, 1, 0), Message(HEARTBEAT, 2, 1, 3)])
        self.network.settle()
        self.assertEqual([what for what, *_ in self.told.appends], ["sent", "lost"])
        self.network.cut.clear()
        self.second.removed_members.add(1)
        self.one.send([append(2, 1, 0)])
        self.network.settle()
        self.assertEqual([what for what, *_ in self.told.appends], ["sent", "lost"] * 2)
        self.assertEqual(self.told.times_s, [])
        self.assertEqual(self.told_of_two.appends, [])

    def test_appends_on_the_other_stream(self) -> None:
        """Without a stream of their own they are counted, but not timed, as in etcd."""
        self.network.introduce()
        link = self.one._links[2]
        link._writers.pop(StreamKind.APPENDS).close()
        self.one.send([append(2, 1, 0, 3), Message(HEARTBEAT, 2, 1, 3)])
        self.network.settle_once()
        self.assertEqual(self.told.appends, [("sent", 2, 300, 1)])
        ((what, member, size, number),) = self.told_of_two.appends
        self.assertEqual((what, member, number), ("received", 1, 1))
        self.assertGreater(size, 300)

    def test_posts_of_who_stops_are_no_failures(self) -> None:
        """A member that is removed has nothing to answer for."""
        self.one.set_peer(2, [self.network.url(2)])
        self.one.send([append(2, 1, 0)])
        self.one.remove_peer(2)
        self.network.settle()
        self.assertEqual([what for what, *_ in self.told.appends], ["sent"])
