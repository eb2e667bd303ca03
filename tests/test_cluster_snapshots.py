"""Members too far behind for the log: snapshots that arrive, are cut off, refused or delayed, and crashes between."""

from __future__ import annotations

from tests.station import HeldWorker, RefusingMemory, Station
from tests.wires import WiredCase, added
from twistedkv.apply import META_INSTALLED
from twistedkv.members import MemberInfo
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.raft_pb2 import (
    ConfChange,
    ConfChangeUpdateNode,
)
from twistedkv.pb.rpc_pb2 import CompactionRequest, Compare, PutRequest, RequestOp, TxnRequest
from twistedkv.raft.messages import Message, MessageType
from twistedkv.storage.backend import Bucket
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.writebehind import DELAY_S


class SnapshotTests(WiredCase):
    """Members that are too far behind for the log."""

    def behind(self, backend: MemoryBackend | None = None) -> tuple[Station, Station]:
        """A cluster whose leader's log has gone beyond what a stopped follower has: the leader, and the follower.

        Args:
            backend: of the follower.
        """
        self.cluster(snapshot_count="20", experimental_snapshot_catchup_entries="5")
        leader, (absent, _) = self.leader(), self.followers()
        self.done(leader.put(b"before"))
        self.run_for(2 * DELAY_S)
        self.crash(absent)
        if backend is not None:
            backend.__dict__.update(absent.backend.__dict__)
            absent.backend = backend
        self.write(leader, 50)
        self.assertGreater(leader.member._node.log.compacted, absent.member._node.log.last_index)
        return leader, absent

    def installing(self) -> tuple[Station, Station, HeldWorker]:
        """As :meth:`behind`, with the follower back and about to install a snapshot, on a slow database."""
        leader, absent = self.behind()
        self.start(absent)
        worker = absent.slow_database()
        self.step(worker, lambda: absent.member._installation.busy)
        return leader, absent, worker

    def refuse(self, station: Station, refuses: bool) -> None:
        """Have a database refuse writes, or take them."""
        assert isinstance(station.backend, RefusingMemory)
        station.backend.refuses = refuses

    def write(self, station: Station, count: int) -> None:
        """So many puts, one entry each."""
        for number in range(count):
            self.done(station.put(b"%d" % number, b"v" * 100))

    def test_a_follower_far_behind_gets_a_snapshot(self) -> None:
        """What the log does not have any more comes as a snapshot, what follows it comes by the log."""
        leader, absent = self.behind()
        self.start(absent)
        self.until(lambda: absent.member.revision == leader.member.revision)
        self.write(leader, 10)
        self.assertEqual(self.wires.snapshots, [(absent.member_id, True)])
        self.assertEqual(absent.member._installation.count, 1)
        self.assert_equal_states()
        self.assertEqual(absent.member.membership.members, leader.member.membership.members)
        self.assertEqual(list((absent.directory / "incoming").iterdir()), [])
        self.crash(absent)
        self.start(absent)
        self.until(lambda: absent.member.revision == leader.member.revision)
        self.assertEqual(len(self.wires.snapshots), 1)
        self.assert_equal_states()

    def test_watchers_get_every_event_once(self) -> None:
        """Whoever watches on a member while it takes a snapshot misses nothing and gets nothing twice."""
        self.cluster(snapshot_count="20", experimental_snapshot_catchup_entries="5")
        leader, (cut, _) = self.leader(), self.followers()
        told: list[int] = []
        cut.member.hub.observe(b"k", b"", 0, lambda revision, _: told.append(revision))
        self.done(*[leader.put(b"k") for _ in range(3)])
        self.until(lambda: told == [2, 3, 4])
        self.wires.isolate(cut.member_id)
        for _ in range(50):
            self.done(leader.put(b"k"))
        self.wires.heal()
        self.until(lambda: cut.member._installation.count == 1)
        self.done(*[leader.put(b"k") for _ in range(3)])
        self.until(lambda: len(told) >= 56)
        self.run_for(0.5)
        self.assertEqual(told, list(range(2, 58)))

    def test_a_member_that_joins_late_gets_a_snapshot(self) -> None:
        """A new member of a cluster whose log is cut short begins with a snapshot, members and all."""
        self.cluster(snapshot_count="20", experimental_snapshot_catchup_entries="5")
        leader = self.leader()
        self.write(leader, 50)
        changed = leader.member.reconfigure(added(4))
        self.until(lambda: changed.called)
        joining = self.station(4)
        self.start(joining)
        self.until(lambda: joining.member.revision == leader.member.revision)
        self.assertEqual(joining.member._installation.count, 1)
        self.assertEqual(joining.member.membership.members, leader.member.membership.members)
        self.assert_equal_states()
        answer = joining.put(b"k")
        self.done(answer)
        self.assertEqual(answer.revision, 52)

    def test_a_damaged_snapshot_is_refused(self) -> None:
        """A snapshot that was changed on its way is not installed; it is asked for again."""
        leader, absent = self.behind()

        def flip(piece: bytes) -> bytes:
            self.wires.spoil = lambda piece: piece
            return piece[:-1] + bytes([piece[-1] ^ 1])

        self.wires.spoil = flip
        self.start(absent)
        self.until(lambda: absent.member.revision == leader.member.revision)
        self.run_for(0.1)
        self.assertEqual(self.wires.snapshots, [(absent.member_id, False), (absent.member_id, True)])
        self.assert_equal_states()
        self.assertEqual(absent.failures, [])

    def test_a_snapshot_that_is_cut_off_is_sent_again(self) -> None:
        """A connection that breaks in the middle of a snapshot costs that snapshot, and nothing else."""
        leader, absent = self.behind()

        def cut(piece: bytes) -> bytes:
            self.wires.spoil = lambda piece: piece
            raise ConnectionError

        self.wires.spoil = cut
        self.start(absent)
        self.until(lambda: absent.member.revision == leader.member.revision)
        self.run_for(0.1)
        self.assertEqual([ok for _, ok in self.wires.snapshots], [False, True])
        self.assertEqual(absent.member._incoming.receiving, 0)
        self.assertEqual(list((absent.directory / "incoming").iterdir()), [])

    def test_a_crash_between_the_database_and_the_log(self) -> None:
        """A member that dies when its database has a snapshot and its log does not goes on from the snapshot."""
        leader, absent, worker = self.installing()
        absent.slow_disk()
        worker.release()
        self.assertEqual(absent.member.revision, leader.member.revision)
        self.assertGreater(absent.member.applied, absent.member._writer._wal.last_index)
        self.crash(absent)
        absent.wal_worker = HeldWorker()
        self.start(absent)
        self.assertEqual(absent.member.revision, leader.member.revision)
        self.until(lambda: absent.member.applied == leader.member.applied)
        self.assertEqual(absent.member._installation.count, 0)
        self.write(leader, 3)
        self.assert_equal_states()
        self.assertEqual(absent.failures, [])

    def test_a_stop_while_a_snapshot_goes_into_the_database(self) -> None:
        """A member that is stopped while its database takes a snapshot starts again, wherever that has come to."""
        leader, absent, worker = self.installing()
        while worker.queue and not any(call.args[:1] == (absent.backend,) for call in worker.queue):
            worker.step()
        self.assertTrue(worker.queue)  # the database is at it
        self.stop(absent)
        self.assertIn(META_INSTALLED, absent.backend.records(Bucket.META))
        self.start(absent)
        self.until(lambda: absent.member.applied == leader.member.applied)
        self.assertEqual(absent.failures, [])
        self.assert_equal_states()

    def test_a_stop_while_the_database_refuses_a_snapshot(self) -> None:
        """A member that is stopped before its database took a snapshot starts again with the state it had."""
        leader, absent = self.behind(RefusingMemory())
        self.start(absent)
        self.refuse(absent, True)
        self.until(lambda: absent.member._installation.busy)
        self.run_for(6.0)
        self.refuse(absent, False)
        self.stop(absent)
        self.assertNotIn(META_INSTALLED, absent.backend.records(Bucket.META))
        self.start(absent)
        self.assertEqual(absent.member.revision, 2)
        self.until(lambda: absent.member.revision == leader.member.revision)
        self.assert_equal_states()

    def test_a_database_that_refuses_a_snapshot_is_asked_again(self) -> None:
        """A database that takes nothing at the moment delays a snapshot; the member goes on waiting for it."""
        leader, absent = self.behind(RefusingMemory())
        self.start(absent)
        self.refuse(absent, True)
        self.until(lambda: absent.member._installation.busy)
        self.run_for(20.0)
        self.assertEqual((absent.failures, absent.member.revision), ([], 2))
        self.assertEqual(absent.member.leader, leader.member_id)
        self.refuse(absent, False)
        self.until(lambda: absent.member.revision == leader.member.revision, limit_s=6.0)
        self.assert_equal_states()

    def test_a_full_disk_delays_a_snapshot(self) -> None:
        """A log without room delays the end of an installation; the member does not stop for it."""
        leader, absent, worker = self.installing()
        absent.disk.full = True
        worker.release()
        self.run_for(12.0)
        self.assertEqual(absent.failures, [])
        self.assertTrue(absent.member._installation.busy)
        absent.disk.full = False
        self.until(lambda: absent.member.applied == leader.member.applied, limit_s=6.0)
        self.assert_equal_states()

    def test_a_stop_while_the_log_has_no_room_for_a_snapshot(self) -> None:
        """A member that is stopped when its database has a snapshot, and its full log does not, starts again."""
        leader, absent, worker = self.installing()
        absent.disk.full = True
        worker.release()
        self.run_for(1.0)
        absent.disk.full = False
        self.stop(absent)
        self.start(absent)
        self.assertEqual(absent.member.revision, leader.member.revision)
        self.until(lambda: absent.member.applied == leader.member.applied)
        self.assert_equal_states()

    def test_a_connection_that_ends_while_a_snapshot_is_examined(self) -> None:
        """What its sender has given up is not installed; another one is."""
        leader, absent = self.behind()
        self.start(absent)
        worker = absent.slow_database()
        self.step(worker, lambda: any(call.function.__name__ == "_finish" for call in worker.queue))
        (receiving,) = {call.function.__self__ for call in worker.queue if call.function.__name__ == "_finish"}
        receiving.abort()
        worker.release()
        self.until(lambda: absent.member.revision == leader.member.revision)
        self.run_for(0.1)
        self.assertEqual([ok for _, ok in self.wires.snapshots], [False, True])
        self.assertEqual(list((absent.directory / "incoming").iterdir()), [])

    def test_a_second_snapshot_while_one_is_installed(self) -> None:
        """A leader may send another snapshot before the first one is in place: both, or the later one, are."""
        leader, absent, worker = self.installing()
        self.write(leader, 20)
        again = leader.member._snapshot_to_come()
        assert again is not None
        term, outgoing = leader.member.term, leader.member._replication._outgoing
        outgoing.over(absent.member_id)
        outgoing.send(
            Message(MessageType.SNAPSHOT, absent.member_id, sender=leader.member_id, term=term, snapshot=again)
        )
        self.step(worker, lambda: (absent.member_id, True) in self.wires.snapshots and not worker.queue)
        worker.release()
        self.until(lambda: absent.member.applied == leader.member.applied)
        self.write(leader, 20)
        self.assert_equal_states()
        self.assertEqual(absent.failures, [])
        self.assertEqual(list((absent.directory / "incoming").iterdir()), [])

    def test_entries_that_change_nothing(self) -> None:
        """A snapshot stands for all that was applied, also when the last thousand transactions wrote nothing."""
        self.cluster(snapshot_count="1000", experimental_snapshot_catchup_entries="5")
        leader, (absent, _) = self.leader(), self.followers()
        self.done(leader.put(b"k"))
        self.run_for(2 * DELAY_S)
        self.crash(absent)
        compare = Compare(key=b"k", target=Compare.VERSION, version=9)
        nothing = TxnRequest(compare=[compare], success=[RequestOp(request_put=PutRequest(key=b"k"))])
        for _ in range(60):
            self.done(leader.propose(InternalRaftRequest(txn=nothing)))
        self.start(absent)
        self.until(lambda: absent.member.applied == leader.member.applied, limit_s=3.0)
        self.run_for(0.1)
        self.assertEqual(self.wires.snapshots, [(absent.member_id, True)])

    def test_a_member_that_moves_while_it_is_sent_a_snapshot(self) -> None:
        """When the URLs of a member change in the middle of a snapshot, it is sent another one."""
        leader, absent = self.behind()
        self.start(absent)
        worker = absent.slow_database()
        self.until(lambda: any(call.function.__name__ == "_write" for call in worker.queue))
        moved = MemberInfo(absent.member_id, ("http://198.51.100.1:2380",))
        change = ConfChange(type=ConfChangeUpdateNode, node_id=moved.id, context=moved.to_json())
        changed = leader.member.reconfigure(change)
        self.until(lambda: changed.called)
        self.successResultOf(changed)
        worker.release()
        self.until(lambda: absent.member.revision == leader.member.revision, limit_s=5.0)
        self.assertEqual(absent.member.membership.members[moved.id].peer_urls, moved.peer_urls)
        self.assert_equal_states()

    def test_a_sweep_ends_while_a_snapshot_comes(self) -> None:
        """A compaction's sweep that ends while a snapshot is put in place leaves no trace in the new state."""
        self.cluster(snapshot_count="20", experimental_snapshot_catchup_entries="5")
        leader, (cut, _) = self.leader(), self.followers()
        self.write(leader, 10)
        self.done(leader.propose(InternalRaftRequest(compaction=CompactionRequest(revision=3))))
        self.run_for(2 * DELAY_S)
        worker = cut.slow_database()
        self.done(leader.propose(InternalRaftRequest(compaction=CompactionRequest(revision=8))))
        self.run_for(0.05)
        self.assertEqual(cut.member.store.compacted, 8)
        self.wires.isolate(cut.member_id)
        self.write(leader, 60)
        self.wires.heal()
        self.step(worker, lambda: cut.member._installation.busy)
        self.stop(cut)
        self.start(cut)
        self.until(lambda: cut.member.applied == leader.member.applied)
        self.assertEqual(cut.failures, [])
        self.assert_equal_states()
