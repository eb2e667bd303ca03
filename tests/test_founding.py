"""What follows from what a member is told, from what others say, and from what its log holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.errors import KVError
from twistedkv.founding import (
    BootstrapError,
    Forced,
    Founding,
    RunningCluster,
    Survey,
    check_advertised,
    check_named,
    check_not_started,
    force_new_cluster,
    is_compatible,
    joined,
    new_cluster,
    other_urls,
    parse_cluster_version,
    parse_downgrade_enabled,
    parse_members,
)
from twistedkv.members import MemberInfo, Membership, promotion
from twistedkv.optiontypes import parse_cluster, parse_url
from twistedkv.pb import raft_pb2
from twistedkv.pb.raft_pb2 import ConfChange, ConfChangeV2
from twistedkv.raft import confchange
from twistedkv.raft.messages import Entry, EntryType, HardState, SnapshotMeta

OURS = "a=https://10.0.0.1:2380,b=https://10.0.0.2:2380,b=https://10.0.1.2:2380,c=https://10.0.0.3:2380"


class _Case(SynchronousTestCase):
    def refusal(self, function: Callable[..., Any], *arguments: Any) -> str:
        text = str(self.assertRaises(BootstrapError, function, *arguments))
        self.assertNotIn("\n", text)
        return text


class NewClusterTests(_Case):
    def test_known_ids(self) -> None:
        """Ids are those that etcd reckons from the same options."""
        founding = new_cluster(parse_cluster("s35=http://127.0.0.1:42380"), "s35", "etcd-cluster")
        self.assertEqual(f"{founding.member_id:x}", "667880157b8812c8")
        self.assertEqual(f"{founding.cluster_id:x}", "dc50b8daae93b3e0")
        self.assertEqual(founding.hard_state, HardState(1, 0, 1))
        self.assertEqual(founding.remotes, {})

    def test_all_members_begin_alike(self) -> None:
        """Every member writes the same log, in the order of ids, and knows where the others are."""
        cluster = parse_cluster(OURS)
        foundings = {name: new_cluster(cluster, name, "token") for name in cluster}
        first = foundings["a"]
        for founding in foundings.values():
            self.assertEqual((founding.cluster_id, founding.entries), (first.cluster_id, first.entries))
            self.assertEqual(founding.hard_state, HardState(1, 0, 3))
            self.assertEqual({founding.member_id, *founding.remotes}, {first.member_id, *first.remotes})
            self.assertNotIn(founding.member_id, founding.remotes)
        self.assertEqual(first.remotes[foundings["b"].member_id], ("https://10.0.0.2:2380", "https://10.0.1.2:2380"))
        changes = [ConfChange.FromString(entry.data) for entry in first.entries]
        self.assertEqual([change.node_id for change in changes], sorted(change.node_id for change in changes))
        self.assertEqual(
            [(entry.term, entry.index, entry.type) for entry in first.entries],
            [(1, index, EntryType.CONF_CHANGE) for index in (1, 2, 3)],
        )
        self.assertEqual({json.loads(change.context)["name"] for change in changes}, {"a", "b", "c"})

    def test_url_order_does_not_matter(self) -> None:
        """Two members that write a third one's URLs in another order reckon the same ids and log."""
        other = "a=https://10.0.0.1:2380,b=https://10.0.1.2:2380,b=https://10.0.0.2:2380,c=https://10.0.0.3:2380"
        self.assertEqual(new_cluster(parse_cluster(OURS), "a", "t"), new_cluster(parse_cluster(other), "a", "t"))

    def test_others(self) -> None:
        """All but our own URLs are asked, in the order of their text, as etcd does."""
        cluster = parse_cluster("b=https://10.0.0.2:2380,a=https://10.0.0.1:2380,c=https://10.0.0.10:2380")
        self.assertEqual(
            [str(url) for url in other_urls(cluster, "a")], ["https://10.0.0.10:2380", "https://10.0.0.2:2380"]
        )

    def test_own_entry(self) -> None:
        """A member that is not in the cluster, or elsewhere in it, is told what would be right."""
        cluster = parse_cluster(OURS)
        check_named(cluster, "a")
        self.assertIn("expected this member's name, z, among them", self.refusal(check_named, cluster, "z"))
        check_advertised(cluster, "b", [parse_url("https://10.0.1.2:2380"), parse_url("https://10.0.0.2:2380")])
        text = self.refusal(check_advertised, cluster, "b", [parse_url("https://10.0.0.2:2380")])
        self.assertIn("--initial-cluster is 'a=https://10.0.0.1:2380,b=", text)
        self.assertIn("--initial-advertise-peer-urls, https://10.0.0.2:2380", text)

    def test_started_before(self) -> None:
        """Who was a member before and has lost its log does not vote a second time."""
        started, told = MemberInfo(7, ("https://a:1",), "a", ("https://a:2",)), MemberInfo(7, ("https://a:1",))
        check_not_started(7, [])
        check_not_started(7, [RunningCluster(1, [told])])
        check_not_started(8, [RunningCluster(1, [started])])
        text = self.refusal(check_not_started, 7, [RunningCluster(1, [told]), RunningCluster(1, [started])])
        self.assertEqual(text, "member 7 has already been bootstrapped")


def running(text: str, ids: Iterable[int] = range(11, 100), cluster: int = 0xC) -> RunningCluster:
    """A cluster whose members have ids in the order in which they are written."""
    members = parse_cluster(text)
    return RunningCluster(
        cluster,
        [
            MemberInfo(each, tuple(map(str, urls)), name)
            for each, (name, urls) in zip(ids, members.items(), strict=False)
        ],
    )


class JoinTests(_Case):
    def join(
        self, *clusters: RunningCluster, versions: Sequence[str] = ("3.5.0",), downgrade: bool = False
    ) -> Founding:
        return joined(parse_cluster(OURS), "b", Survey(clusters, versions, downgrade), "3.5.1")

    def test_takes_over_ids(self) -> None:
        """The ids are the cluster's own, and the log begins empty."""
        founding = self.join(running(OURS))
        self.assertEqual((founding.member_id, founding.cluster_id), (12, 0xC))
        self.assertEqual(founding.remotes, {11: ("https://10.0.0.1:2380",), 13: ("https://10.0.0.3:2380",)})
        self.assertEqual((founding.entries, founding.hard_state), ((), HardState()))

    def test_names_do_not_matter(self) -> None:
        """A member that was added and has not started has no name yet, and another's may be written differently."""
        cluster = running(OURS.replace("a=", "x="))
        unnamed = [MemberInfo(each.id, each.peer_urls) for each in cluster.members]
        self.assertEqual(self.join(RunningCluster(0xC, unnamed)).member_id, 12)

    def test_nobody_answers(self) -> None:
        """Without any answer the refusal is etcd's."""
        self.assertIn(
            "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs",
            self.refusal(self.join),
        )

    def test_another_cluster(self) -> None:
        """A cluster with more, fewer or other members is not ours, and is shown."""
        short = ",".join(OURS.split(",")[:-1])
        self.assertIn("member count is unequal: the cluster has a=", self.refusal(self.join, running(short)))
        self.assertIn("member count is unequal", self.refusal(self.join, running(OURS + ",d=https://10.0.0.4:2380")))
        moved = running(OURS.replace("10.0.0.3", "10.0.0.4"))
        self.assertIn("unmatched member while checking PeerURLs", self.refusal(self.join, moved))
        one_url_less = running(OURS.replace(",b=https://10.0.1.2:2380", ""))
        self.assertIn("unmatched member while checking PeerURLs", self.refusal(self.join, one_url_less))

    def test_one_member_lags_behind(self) -> None:
        """An answer from before we were added does not count if another one fits."""
        short = running(",".join(OURS.split(",")[:-1]))
        self.assertEqual(self.join(short, running(OURS)).member_id, 12)
        self.assertIn("member count is unequal", self.refusal(self.join, short, short))

    def test_version_of_the_cluster(self) -> None:
        """A cluster of another age is refused, and so is one of which nobody tells the age."""
        for versions in ((), ("not_decided",), ("3.6.0",), ("2.3.0", "3.5.0"), ("3.5.0", "3.6.0")):
            with self.subTest(versions=versions):
                text = self.refusal(lambda versions=versions: self.join(running(OURS), versions=versions))
                self.assertIn("incompatible with current running cluster", text)
        for versions in (("3.0.0",), ("3.5.0", "not_decided"), ("3.4.0", "3.5.0")):
            self.assertEqual(self.join(running(OURS), versions=versions).member_id, 12)

    def test_downgrade(self) -> None:
        """While a cluster is downgraded to our version, its own is the next one, and no other will do."""
        self.assertTrue(is_compatible(["3.6.0"], True, "3.5.1"))
        self.assertFalse(is_compatible(["3.5.0"], True, "3.5.1"))
        self.assertFalse(is_compatible(["3.7.0"], True, "3.5.1"))
        self.assertFalse(is_compatible(["3.6.0"], False, "3.5.1"))
        self.assertRaises(ValueError, is_compatible, [], False, "new")


class AnswerTests(_Case):
    def test_members(self) -> None:
        """Go's JSON is read; whatever else comes is refused as a value."""
        body = (
            b'[{"id":7383792418829112008,"peerURLs":["http://a:1"],"name":"a","clientURLs":["http://a:2"]},'
            b'{"id":18446744073709551615,"peerURLs":["http://b:1"],"isLearner":true}]\n'
        )
        self.assertEqual(
            parse_members(body),
            [
                MemberInfo(7383792418829112008, ("http://a:1",), "a", ("http://a:2",)),
                MemberInfo(2**64 - 1, ("http://b:1",), "", (), True),
            ],
        )

    @given(
        st.one_of(st.binary(), st.sampled_from([b"[]", b"null", b"{}", b"[1]", b'[{"id":"x"}]', b"[[]]", b"[" * 9999]))
    )
    def test_anything_is_an_answer_or_a_value_error(self, body: bytes) -> None:
        """A stranger's words cannot do more than be refused."""
        for parse in (parse_members, parse_cluster_version, parse_downgrade_enabled):
            try:
                parse(body)
            except (ValueError, RecursionError):
                continue

    def test_version_and_downgrade(self) -> None:
        """The forms in which etcd writes them."""
        self.assertEqual(parse_cluster_version(b'{"etcdserver":"3.5.1","etcdcluster":"3.5.0"}'), "3.5.0")
        self.assertRaises(ValueError, parse_cluster_version, b'{"etcdserver":"3.5.1"}')
        self.assertRaises(ValueError, parse_cluster_version, b"[]")
        self.assertIs(parse_downgrade_enabled(b"true"), True)
        self.assertIs(parse_downgrade_enabled(b"false"), False)
        self.assertRaises(ValueError, parse_downgrade_enabled, b"404 page not found\n")


def urls(member: int) -> tuple[str, ...]:
    return (f"https://10.0.0.{member}:2380",)


def add(member: int, *, learner: bool = False) -> ConfChange:
    kind = raft_pb2.ConfChangeAddLearnerNode if learner else raft_pb2.ConfChangeAddNode
    return ConfChange(type=kind, node_id=member, context=MemberInfo(member, urls(member), is_learner=learner).to_json())


def remove(member: int) -> ConfChange:
    return ConfChange(type=raft_pb2.ConfChangeRemoveNode, node_id=member)


def promote(member: int) -> ConfChange:
    return ConfChange(type=raft_pb2.ConfChangeAddNode, node_id=member, context=promotion(member))


def move(member: int, host: int) -> ConfChange:
    context = MemberInfo(member, (f"https://10.0.1.{host}:2380",)).to_json()
    return ConfChange(type=raft_pb2.ConfChangeUpdateNode, node_id=member, context=context)


def log(*items: ConfChange | bytes, first: int = 1, term: int = 2) -> list[Entry]:
    """A log of changes and other entries."""
    return [
        Entry(term, index, item, EntryType.NORMAL)
        if isinstance(item, bytes)
        else Entry(term, index, item.SerializeToString(), EntryType.CONF_CHANGE)
        for index, item in enumerate(items, first)
    ]


class Replay:
    """What becomes of members and of Raft's configuration when entries are applied, as a member does it."""

    def __init__(self, membership: Membership | None = None) -> None:
        known = membership or Membership()
        self.members = Membership(known.members, known.removed)
        self.configuration = confchange.Configuration.of(known.conf_state())
        self.data: list[bytes] = []

    def apply(self, entries: Iterable[Entry]) -> Replay:
        for entry in entries:
            if entry.type is EntryType.NORMAL:
                self.data.append(entry.data)
                continue
            change = confchange.decode(entry)
            assert isinstance(change, ConfChange)
            try:
                self.members.check(change)
            except (KVError, ValueError):
                change.node_id = 0
            else:
                self.members.apply(change)
            self.configuration = self.configuration.changed(confchange.as_v2(change))
        return self


THREE = (add(1), add(2), add(3))


class ForceNewClusterTests(_Case):
    def force(
        self, entries: Sequence[Entry], commit: int, applied: int = 0, me: int = 1, vote: int = 0, term: int = 2
    ) -> Forced:
        membership = Replay().apply(entries[:applied]).members
        return force_new_cluster(
            entries, HardState(term, vote, commit), SnapshotMeta(), membership, applied, me, urls(me)
        )

    def outcome(self, entries: Sequence[Entry], forced: Forced) -> Replay:
        """All of the log as it is then, applied from its beginning."""
        first = forced.entries[0].index if forced.entries else len(entries) + 1
        whole = [*entries[: first - 1], *forced.entries]
        self.assertEqual([entry.index for entry in whole], list(range(1, len(whole) + 1)))
        self.assertEqual(forced.hard_state.commit, len(whole))
        return Replay().apply(whole)

    def assert_alone(self, replay: Replay, me: int = 1) -> None:
        self.assertEqual(list(replay.members.members), [me])
        self.assertFalse(replay.members.members[me].is_learner)
        self.assertEqual(replay.configuration, confchange.Configuration(voters=frozenset({me})))

    def test_others_are_removed(self) -> None:
        """Each of the others is removed by an entry of its own, and everything that is in the log stays."""
        entries = log(*THREE, b"one", b"two")
        forced = self.force(entries, commit=4, applied=3)
        self.assertEqual([confchange.decode(entry) for entry in forced.entries], [remove(2), remove(3)])
        self.assertEqual([entry.index for entry in forced.entries], [6, 7])
        self.assertEqual(forced.hard_state, HardState(2, 0, 7))
        replay = self.outcome(entries, forced)
        self.assert_alone(replay)
        self.assertEqual(replay.data, [b"one", b"two"])
        self.assertEqual(replay.members.removed, {2, 3})

    def test_second_time(self) -> None:
        """The flag may stay: another start adds nothing, whether or not the database has come along."""
        entries = log(*THREE, b"one")
        forced = self.force(entries, commit=4)
        whole = [*entries, *forced.entries]
        for applied in (3, len(whole)):
            again = self.force(whole, commit=forced.hard_state.commit, applied=applied)
            self.assertEqual(again, Forced([], forced.hard_state))

    def test_learners_go_and_uncommitted_members_too(self) -> None:
        """Whoever the log mentions goes, also if that was not committed."""
        entries = log(*THREE, add(4, learner=True), remove(2), add(5))
        replay = self.outcome(entries, self.force(entries, commit=4))
        self.assert_alone(replay)
        self.assertEqual(replay.members.removed, {2, 3, 4, 5})

    def test_learner_becomes_the_voter(self) -> None:
        """A learner that goes on alone is promoted before the last voter leaves."""
        entries = log(*THREE, add(4, learner=True))
        forced = self.force(entries, commit=4, me=4)
        self.assert_alone(self.outcome(entries, forced), 4)
        self.assertEqual(confchange.decode(forced.entries[-2]), promote(4))

    def test_member_that_the_log_does_not_have(self) -> None:
        """A member that had not caught up to its own addition adds itself."""
        entries = log(*THREE, b"one")
        forced = self.force(entries, commit=4, me=9)
        replay = self.outcome(entries, forced)
        self.assert_alone(replay, 9)
        self.assertEqual(replay.members.members[9].peer_urls, urls(9))

    def test_empty_log(self) -> None:
        """A member that never got anything begins a cluster of its own."""
        forced = force_new_cluster([], HardState(), SnapshotMeta(), Membership(), 0, 9, urls(9))
        self.assert_alone(self.outcome([], forced), 9)
        self.assertEqual([(entry.term, entry.index) for entry in forced.entries], [(1, 1)])

    def test_log_that_was_cut_short(self) -> None:
        """Where only a snapshot is left, the entries follow it, in a term no lower."""
        membership = Replay().apply(log(*THREE)).members
        meta = SnapshotMeta(50, 7, membership.conf_state())
        forced = force_new_cluster([], HardState(6, 2, 50), meta, membership, 50, 1, urls(1))
        self.assertEqual([(entry.term, entry.index) for entry in forced.entries], [(7, 51), (7, 52)])
        self.assertEqual(forced.hard_state, HardState(7, 0, 52))  # the vote was another term's

    def test_own_removal_that_was_not_committed(self) -> None:
        """It becomes an empty entry, and what came behind it stays."""
        entries = log(*THREE, b"one", remove(1), b"two")
        forced = self.force(entries, commit=4, vote=3)
        self.assertEqual(forced.entries[0], Entry(2, 5, b""))
        replay = self.outcome(entries, forced)
        self.assert_alone(replay)
        self.assertEqual(replay.data, [b"one", b"", b"two"])
        self.assertEqual(forced.hard_state.vote, 3)

    def test_own_removal(self) -> None:
        """A member that was removed stays so: its id can never come back."""
        entries = log(*THREE, b"one", remove(1))
        for commit, applied in ((5, 0), (4, 5)):
            text = self.refusal(self.force, entries, commit, applied)
            self.assertIn("member 1 has been permanently removed from the cluster", text)

    def test_urls_of_another(self) -> None:
        """Two members cannot have the same URLs, so that one of them must be told others."""
        entries = log(
            *(ConfChange(type=raft_pb2.ConfChangeAddNode, node_id=2, context=MemberInfo(2, urls(9)).to_json()),)
        )
        self.assertIn("another member has its URLs", self.refusal(lambda: self.force(entries, 1, me=9)))

    def test_log_that_cannot_be_followed(self) -> None:
        """Joint changes are not etcd's, and a change that is none is damage."""
        for data, kind in (
            (ConfChangeV2().SerializeToString(), EntryType.CONF_CHANGE_V2),
            (b"\xff", EntryType.CONF_CHANGE),
        ):
            entries = [*log(*THREE), Entry(2, 4, data, kind)]
            self.assertIn("the log cannot be followed", self.refusal(self.force, entries, 4))

    @given(st.data())
    @settings(max_examples=300)
    def test_any_history(self, data: st.DataObject) -> None:
        """Whatever the members did before, the log's owner is alone at the end and has lost nothing."""
        entries = data.draw(histories())
        applied = data.draw(st.integers(0, len(entries)))
        commit = data.draw(st.integers(0, len(entries)))
        me = data.draw(st.integers(1, 8))
        known = Replay().apply(entries[: max(applied, commit)]).members
        if me in known.removed:
            self.refusal(self.force, entries, commit, applied, me)
            return
        forced = self.force(entries, commit, applied, me)
        replay = self.outcome(entries, forced)
        self.assert_alone(replay, me)
        first = forced.entries[0].index if forced.entries else len(entries) + 1
        self.assertGreater(first, max(applied, commit))
        for old, new in zip(entries[first - 1 :], forced.entries, strict=False):
            if old != new:
                self.assertEqual((confchange.decode(old), new), (remove(me), Entry(old.term, old.index, b"")))
        whole = [*entries[: first - 1], *forced.entries]
        self.assertEqual(self.force(whole, len(whole), applied, me), Forced([], forced.hard_state))


@st.composite
def histories(draw: Any) -> list[Entry]:
    """Logs as Raft makes them: some changes are refused when applied, none takes the last voter."""
    replay = Replay()
    items: list[ConfChange | bytes] = []
    member = st.integers(1, 6)
    changes = st.one_of(
        st.builds(add, member),
        st.builds(lambda each: add(each, learner=True), member),
        st.builds(promote, member),
        st.builds(remove, member),
        st.builds(move, member, st.integers(1, 6)),
        st.just(b"data"),
    )
    for item in draw(st.lists(changes, max_size=12)):
        before = Replay(replay.members)
        try:
            replay.apply(log(item))
        except confchange.ConfChangeError:  # nobody would be left
            replay = before
            continue
        items.append(item)
    return log(*items)
