"""Several members on one clock: what clients see while leaders come and go, members change and disks fail."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from tests.station import Station
from tests.wires import WiredCase, added, learner, removed
from twistedkv.errors import (
    LeaderFailureTimeoutError,
    MemberExistsError,
    MemberNotFoundError,
    NoSpaceError,
    RemovedError,
    RequestTimeoutError,
    StoppedError,
)
from twistedkv.members import MemberInfo, promotion
from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.pb.raft_pb2 import (
    ConfChange,
    ConfChangeAddNode,
    ConfChangeUpdateNode,
)
from twistedkv.v2errors import V2Error


class WritingTests(WiredCase):
    """Elections and writes."""

    def test_one_of_three_leads_and_all_have_what_is_written(self) -> None:
        """Three members elect one of them, and a put is on all of them, with the same revision, once it is answered."""
        self.cluster()
        leader = self.leader()
        answer = leader.put(b"k", b"v")
        self.done(answer)
        self.assertEqual(answer.revision, 2)
        self.run_for(0.2)
        self.assertEqual({each.get(b"k") for each in self.running()}, {leader.get(b"k")})
        self.assert_equal_states()

    def test_a_follower_forwards_a_put_and_answers_it(self) -> None:
        """Whichever member a client asks, its put goes through the leader and comes back with its revision."""
        self.cluster()
        self.leader()
        for revision, station in enumerate(self.running(), 2):
            answer = station.put(b"k")
            self.done(answer)
            self.assertEqual(answer.revision, revision)
            self.assertIsNotNone(station.get(b"k"))
        self.assert_equal_states()

    def test_two_of_three_go_on_and_the_third_catches_up(self) -> None:
        """While one member is down the others serve; when it is back it gets what it has missed."""
        self.cluster()
        leader, (absent, other) = self.leader(), self.followers()
        self.crash(absent)
        answers = [each.put(b"k") for each in (leader, other) for _ in range(10)]
        self.done(*answers)
        self.assertEqual(sorted(answer.revision for answer in answers), list(range(2, 22)))
        self.start(absent)
        self.until(lambda: absent.member.revision == 21)
        self.assert_equal_states()

    def test_one_of_three_alone_serves_nothing(self) -> None:
        """A leader that hears of no quorum steps down; neither a put nor a read is answered by it."""
        self.cluster()
        leader = self.leader()
        self.wires.isolate(leader.member_id)
        put, read = leader.put(b"k"), leader.read()
        self.until(lambda: not leader.member.is_leader, limit_s=2.5)
        self.done(put, read)
        self.assert_error(read, RequestTimeoutError)
        self.assertIsNotNone(put.error)
        self.assertEqual(leader.member.revision, 1)

    def test_members_that_crash_all_at_once_have_every_answered_put(self) -> None:
        """After a power cut of the whole cluster nothing that was answered is missing, and revisions go on."""
        self.cluster()
        answers = [each.put(b"k") for _ in range(10) for each in self.running()]
        self.done(*answers)
        for station in self.running():
            self.crash(station)
        for station in self.stations.values():
            self.start(station)
        self.leader()
        answer = self.running()[0].put(b"k")
        self.done(answer)
        self.assertEqual(answer.revision, 32)
        self.assert_equal_states()


class LeaderLossTests(WiredCase):
    """What becomes of requests when the leader goes."""

    def test_a_put_lost_with_its_leader(self) -> None:
        """A put that a leader took while it was cut off ends with etcd's error once the next leader's first entry is
        applied there, long before its time is up, and is in nobody's state."""
        self.cluster()
        old = self.leader()
        self.wires.isolate(old.member_id)
        lost = old.put(b"lost")
        self.until(lambda: any(each.member.is_leader for each in self.running() if each is not old))
        self.assertFalse(lost.done)
        asked_s = self.clock.seconds()
        self.wires.heal()
        self.done(lost)
        self.assertLess(self.clock.seconds() - asked_s, 1.0)
        self.assert_error(lost, LeaderFailureTimeoutError)
        self.assert_equal_states()
        self.assertEqual([each.member.revision for each in self.running()], [1, 1, 1])

    def test_a_put_that_the_next_leader_has_is_answered_once(self) -> None:
        """A put that reached a majority before its leader died is answered with its revision by the member that the
        client asked, although another one leads by then."""
        self.cluster()
        old = self.leader()
        asked = self.followers()[0]
        last = old.member._node.log.last_index
        answer = asked.put(b"k")
        self.until(lambda: asked.member._node.log.last_index == last + 1)
        self.crash(old)
        self.assertFalse(answer.done)
        self.done(answer)
        self.assertEqual(answer.revision, 2)
        self.assert_equal_states()

    def test_proposals_wait_for_a_leader(self) -> None:
        """What is asked while nobody leads goes to the next leader, once, and is answered by it."""
        self.cluster()
        old = self.leader()
        survivors = self.followers()
        self.crash(old)
        self.until(lambda: not any(each.member.leader for each in survivors))
        answers = [each.put(b"k") for each in survivors for _ in range(5)]
        self.run_for(0.2)
        self.assertFalse(any(answer.done for answer in answers))
        self.done(*answers)
        self.assertEqual(sorted(answer.revision for answer in answers), list(range(2, 12)))
        self.assertEqual({each.member.revision for each in survivors}, {11})

    def test_proposals_end_without_a_leader(self) -> None:
        """With nobody to lead a put ends with etcd's time-out, and is not carried out when the others are back."""
        self.cluster()
        alone, *others = self.running()
        for each in others:
            self.crash(each)
        self.until(lambda: not alone.member.leader)
        answer = alone.put(b"k")
        self.run_for(6.9)
        self.assertFalse(answer.done)
        self.run_for(0.3)
        self.assert_error(answer, RequestTimeoutError)
        for each in others:
            self.start(each)
        self.leader()
        self.run_for(1.0)
        self.assertEqual({each.member.revision for each in self.running()}, {1})

    def test_leadership_is_handed_over_on_request(self) -> None:
        """A leader that is asked to lets another one lead, without an election timeout; writes go on."""
        self.cluster()
        leader, (follower, _) = self.leader(), self.followers()
        leader.member.transfer_leader(follower.member_id)
        self.run_for(0.1)
        self.assertTrue(follower.member.is_leader)
        answer = leader.put(b"k")
        self.done(answer)
        self.assertEqual(answer.revision, 2)

    def test_whoever_waits_for_a_leader_is_told_once(self) -> None:
        """``when_leader`` calls once, when a leader is known, and not if it was taken back before that."""
        self.cluster()
        told: list[str] = []
        station = self.running()[0]
        station.member.when_leader(lambda: told.append("waited"))
        cancel = station.member.when_leader(lambda: told.append("taken back"))
        cancel()
        self.assertEqual(told, [])
        leader = self.leader()
        self.assertEqual(told, ["waited"])
        station.member.when_leader(lambda: told.append("known already"))
        self.assertEqual(told, ["waited", "known already"])
        for each in self.running():
            if each is not station:
                self.wires.isolate(each.member_id)
        self.until(lambda: not station.member.leader)
        self.wires.heal()
        self.leader()
        self.assertEqual(told, ["waited", "known already"])
        del leader


class ReadingTests(WiredCase):
    """Linearizable reads."""

    def test_a_follower_reads_what_was_written_before(self) -> None:
        """A read on a follower asks the leader's quorum and waits until its own state is as new."""
        self.cluster()
        leader, (follower, _) = self.leader(), self.followers()
        for number in range(5):
            put = leader.put(b"k", b"%d" % number)
            self.done(put)
            read = follower.read()
            self.assertFalse(read.done)
            self.done(read)
            self.assertIsNone(read.error)
            self.assertEqual(follower.get(b"k"), leader.get(b"k"))

    def test_a_leader_that_was_overthrown_reads_nothing_old(self) -> None:
        """A leader that does not know yet that another one leads answers no read before it knows better."""
        self.cluster()
        old = self.leader()
        self.wires.isolate(old.member_id)
        read = old.read()
        rest = [each for each in self.running() if each is not old]
        self.until(lambda: any(each.member.is_leader for each in rest))
        put = rest[0].put(b"k", b"new")
        self.done(put)
        self.assertFalse(read.done)
        self.wires.heal()
        self.done(read)
        self.assertIsNone(read.error)
        self.assertIsNotNone(old.get(b"k"))

    def test_reads_wait_for_a_leader(self) -> None:
        """A read that is asked while nobody leads is answered by the next leader's quorum."""
        self.cluster()
        self.crash(self.leader())
        first, second = self.running()
        self.until(lambda: not first.member.leader)
        reads = [first.read(), second.read()]
        self.done(*reads)
        self.assertEqual([read.error for read in reads], [None, None])


class MembersTests(WiredCase):
    """Members that come, learn, move and go."""

    def change(self, station: Station, change: ConfChange) -> Deferred[None]:
        """Reconfigure, and let time pass until that is over."""
        changed = station.member.reconfigure(change)
        self.until(lambda: changed.called)
        return changed

    def outcome(self, changed: Deferred[None]) -> BaseException | None:
        """The error that a change ended with, if it did."""
        errors: list[BaseException | None] = [None]
        changed.addErrback(lambda failure: errors.insert(0, failure.value))
        return errors[0]

    def test_a_member_comes_in(self) -> None:
        """A member that is added gets the log and votes: two of four are no quorum then."""
        self.cluster()
        leader = self.leader()
        self.done(leader.put(b"k"))
        self.successResultOf(self.change(leader, added(4)))
        joining = self.station(4)
        self.start(joining)
        self.until(lambda: joining.member.revision == 2)
        self.assertEqual(joining.member.membership.members, leader.member.membership.members)
        self.assert_equal_states()
        for each in [each for each in self.running() if each not in (leader, joining)]:
            self.crash(each)
        answer = leader.put(b"k")
        self.done(answer)
        self.assertIsNotNone(answer.error)

    def test_a_follower_may_be_asked_for_a_change(self) -> None:
        """A change of the members that a follower is asked for goes through the leader, and is over when applied."""
        self.cluster()
        self.leader()
        follower = self.followers()[0]
        self.successResultOf(self.change(follower, added(4)))
        self.assertIn(4, follower.member.membership.members)

    def test_a_learner_is_promoted(self) -> None:
        """A learner gets everything, reads and forwards puts, and counts for no quorum until it is promoted."""
        self.cluster()
        leader = self.leader()
        self.successResultOf(self.change(leader, learner(4)))
        learning = self.station(4)
        self.start(learning)
        self.until(lambda: 4 in learning.member.membership.members)
        self.assertTrue(learning.member.is_learner)
        self.assertEqual(len(leader.member._node.configuration.all_voters), 3)
        put, read = learning.put(b"k"), learning.read()
        self.done(put, read)
        self.assertEqual((put.revision, read.error), (2, None))
        promote = ConfChange(type=ConfChangeAddNode, node_id=4, context=promotion(4))
        self.successResultOf(self.change(leader, promote))
        self.until(lambda: not learning.member.is_learner)
        self.assertEqual(len(leader.member._node.configuration.all_voters), 4)
        self.assert_equal_states()

    def test_a_member_that_is_removed_stops(self) -> None:
        """A removed member says why and stops a second after it has heard of it, so that others hear of it too."""
        self.cluster()
        self.wires.tell_removed = False
        leader, (gone, stays) = self.leader(), self.followers()
        self.successResultOf(self.change(leader, removed(gone.member_id)))
        self.until(lambda: gone.member_id not in gone.member.membership.members)
        heard_s = self.clock.seconds()
        self.assertEqual(gone.failures, [])
        self.until(lambda: gone.failures, limit_s=1.0)
        self.assertGreater(self.clock.seconds() - heard_s, 0.9)
        self.assertIsInstance(gone.failures[0], RemovedError)
        self.assertTrue(gone.member.stopped)
        self.assertEqual(gone.clock.getDelayedCalls(), [])
        self.assert_error(gone.put(b"k"), StoppedError)
        answer = stays.put(b"k")
        self.done(answer)
        self.assertEqual(answer.revision, 2)

    def test_a_member_that_was_away_when_it_was_removed(self) -> None:
        """A member that comes back and is told by others that it is none any more stops at once."""
        self.cluster()
        leader, (away, _) = self.leader(), self.followers()
        self.wires.isolate(away.member_id)
        self.successResultOf(self.change(leader, removed(away.member_id)))
        self.run_for(2.0)
        self.assertEqual(away.failures, [])
        self.wires.heal()
        self.until(lambda: away.failures)
        self.assertEqual([type(each) for each in away.failures], [RemovedError])

    def test_a_leader_may_be_removed(self) -> None:
        """A leader that is removed stops too, and the others elect one of them."""
        self.cluster()
        leader = self.leader()
        rest = self.followers()
        self.successResultOf(self.change(leader, removed(leader.member_id)))
        self.until(lambda: leader.failures, limit_s=1.5)
        self.assertIsInstance(leader.failures[0], RemovedError)
        self.wires.disconnect(leader.member_id)
        del self.stations[leader.member_id]
        self.leader()
        answer = rest[0].put(b"k")
        self.done(answer)
        self.assertEqual(answer.revision, 2)
        self.assertEqual({tuple(each.member.membership.members) for each in rest}, {tuple(e.member_id for e in rest)})

    def test_a_second_change_waits_for_the_first(self) -> None:
        """Changes that are asked for at once are made one after the other; none is lost."""
        self.cluster()
        leader, (follower, _) = self.leader(), self.followers()
        changes = [
            leader.member.reconfigure(added(4)),
            leader.member.reconfigure(removed(4)),
            leader.member.reconfigure(added(5)),
            leader.member.reconfigure(added(5)),
        ]
        self.until(lambda: all(changed.called for changed in changes))
        for changed in changes[:3]:
            self.successResultOf(changed)
        self.failureResultOf(changes[3], MemberExistsError)
        self.run_for(0.2)
        self.assertEqual(sorted(follower.member.membership.members), [1, 2, 3, 5])
        self.assertEqual(follower.member.membership.removed, {4})

    def test_changes_of_several_members_come_to_an_end(self) -> None:
        """Of two members that ask for a change at once one at least gets it, as with etcd, and neither hangs."""
        self.cluster()
        self.leader()
        one, other = self.followers()
        changes = [one.member.reconfigure(added(4)), other.member.reconfigure(added(5))]
        self.until(lambda: all(changed.called for changed in changes), limit_s=one.member.timeout_s + 0.2)
        refused = [failure for changed in changes for failure in [self.outcome(changed)] if failure is not None]
        self.assertLessEqual(len(refused), 1)
        for error in refused:
            self.assertIsInstance(error, RequestTimeoutError)
        self.successResultOf(self.change(one, removed(4 if 4 in one.member.membership.members else 5)))

    def test_a_change_is_refused_alike_by_all(self) -> None:
        """A change that does not fit is refused by its error, changes nobody, and the next one goes through."""
        self.cluster()
        leader = self.leader()
        self.failureResultOf(self.change(leader, removed(9)), MemberNotFoundError)
        self.failureResultOf(self.change(leader, added(2)), MemberExistsError)
        self.run_for(0.2)
        self.assertEqual({len(each.member._node.configuration.all_voters) for each in self.running()}, {3})
        self.successResultOf(self.change(leader, added(4)))

    def test_a_change_that_a_lost_leader_had(self) -> None:
        """A change that was lost with its leader is told so, and the next one does not wait for it."""
        self.cluster()
        old = self.leader()
        self.wires.isolate(old.member_id)
        lost, waits = old.member.reconfigure(added(4)), old.member.reconfigure(added(5))
        rest = [each for each in self.running() if each is not old]
        self.until(lambda: any(each.member.is_leader for each in rest))
        self.wires.heal()
        healed_s = self.clock.seconds()
        self.until(lambda: lost.called and waits.called)
        self.assertLess(self.clock.seconds() - healed_s, 1.0)
        self.failureResultOf(lost, LeaderFailureTimeoutError)
        self.successResultOf(waits)
        self.assertEqual(sorted(old.member.membership.members), [1, 2, 3, 5])

    def test_a_member_moves(self) -> None:
        """When a member's peer URLs change, the others reach it by the new ones."""
        self.cluster()
        leader, (follower, _) = self.leader(), self.followers()
        moved = MemberInfo(follower.member_id, ("http://198.51.100.1:2380",))
        change = ConfChange(type=ConfChangeUpdateNode, node_id=moved.id, context=moved.to_json())
        self.successResultOf(self.change(leader, change))
        self.assertEqual(self.wires.ends[leader.member_id].urls[moved.id], moved.peer_urls)

    def test_etcd_35_tells_of_members_and_version_in_its_old_form(self) -> None:
        """What members of etcd 3.5 log of themselves and of the cluster's version is carried out as etcd's is."""
        self.cluster()
        leader = self.leader()
        attributes = Request(
            ID=7,
            Method="PUT",
            Path=b"/0/members/2/attributes",
            Val=b'{"name":"old","clientURLs":["http://192.0.2.2:1"]}',
        )
        version = Request(ID=8, Method="PUT", Path=b"/0/version", Val=b"3.5.0")
        v2_key = Request(ID=9, Method="PUT", Path=b"/1/key", Val=b"v")
        for request in (attributes, version, v2_key):
            leader.member._node.propose([request.SerializeToString()])
        leader.member.stirred()
        self.run_for(0.3)
        for station in self.running():
            member = station.member.membership.members[2]
            self.assertEqual((member.name, member.client_urls), ("old", ("http://192.0.2.2:1",)))
            self.assertEqual(station.member.applier.cluster_version, "3.5.0")
            self.assertEqual(station.failures, [])
            self.assertEqual(station.member.revision, 1)
            self.assertEqual(station.member.directory.get("/1/key").node.value, "v")

    def test_keys_of_the_v2_api(self) -> None:
        """A follower takes what the v2 API asks for; all members have the same tree, with the same indexes."""
        self.cluster()
        follower = self.followers()[0]
        answers = [follower.put_v2(b"/a/b"), follower.put_v2(b"/a/b", PrevExist=False), follower.put_v2(b"/a/c")]
        for answer in answers:
            self.done(answer)
        self.assertIsInstance(answers[1].error, V2Error)
        assert answers[0].event is not None
        self.assertTrue(answers[0].event.is_created)
        self.run_for(0.3)
        views = {str(each.member.directory.get("/", True, True).node) for each in self.running()}
        indexes = {each.member.directory.index for each in self.running()}
        self.assertEqual((len(views), len(indexes)), (1, 1))


class DiskTests(WiredCase):
    """Disks that are full or slow."""

    def test_a_leader_with_a_full_disk_hands_over(self) -> None:
        """A leader that cannot write lets another one lead within a second, and the cluster takes writes again."""
        self.cluster()
        old = self.leader()
        old.disk.full = True
        waiting = old.put(b"waiting")
        self.run_for(0.05)
        self.assert_error(old.put(b"refused"), NoSpaceError)
        self.until(lambda: not old.member.is_leader, limit_s=1.0)
        leader = self.leader()
        answer = leader.put(b"k")
        self.done(answer)
        self.assertIsNone(answer.error)
        old.disk.full = False
        self.done(waiting)
        self.assertIsNone(waiting.error)
        self.assert_equal_states()
        self.assertEqual([each.failures for each in self.running()], [[], [], []])

    def test_a_slow_disk_silences_no_heartbeats(self) -> None:
        """A leader whose disk takes seconds stays the leader, and the others read what it has not written yet."""
        self.cluster()
        leader, (follower, _) = self.leader(), self.followers()
        worker = leader.slow_disk()
        put = leader.put(b"k")
        self.run_for(5.0)
        self.assertTrue(worker.queue)
        self.assertTrue(leader.member.is_leader)
        self.assertEqual({each.member.leader for each in self.running()}, {leader.member_id})
        read, own_read = follower.read(), leader.read()
        self.until(lambda: read.done, limit_s=0.2)
        self.assertIsNone(read.error)
        self.assertIsNotNone(follower.get(b"k"))
        self.assertFalse(put.done or own_read.done)  # the put is committed, and this state does not have it
        worker.release()
        self.done(put, own_read)
        self.assertEqual((put.revision, own_read.error), (2, None))

    def test_reads_go_on_while_a_disk_works(self) -> None:
        """While its disk is busy with what no read has to see, a member's reads are confirmed and served."""
        self.cluster()
        leader, (follower, _) = self.leader(), self.followers()
        self.done(leader.put(b"k"))
        self.run_for(0.2)
        for station in (leader, follower):
            worker = station.slow_disk()
            station.member._writer.run(lambda wal: None)
            read = station.read()
            self.until(lambda read=read: read.done, limit_s=0.2)
            self.assertIsNone(read.error)
            self.assertTrue(worker.queue)
            worker.release()

    def test_a_slow_follower_answers_when_it_has_written(self) -> None:
        """A follower acknowledges nothing before it is on its disk, and answers heartbeats all the same."""
        self.cluster()
        leader, (slow, other) = self.leader(), self.followers()
        self.crash(other)
        worker = slow.slow_disk()
        put = leader.put(b"k")
        self.run_for(3.0)
        self.assertTrue(leader.member.is_leader)
        self.assertFalse(put.done)
        self.assertEqual(leader.member.revision, 1)
        worker.release()
        self.done(put)
        self.assertEqual(put.revision, 2)
