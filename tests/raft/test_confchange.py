"""Configuration changes: etcd's scenarios, and what holds for any sequence of changes."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import datadriven
from twistedkv.pb import raft_pb2
from twistedkv.raft.confchange import ConfChangeError, Configuration, as_v2, decode, encode
from twistedkv.raft.messages import ConfState, Entry, EntryType
from twistedkv.raft.progress import Progress

SCENARIOS = Path(__file__).with_name("testdata") / "confchange"
KINDS = {
    "v": raft_pb2.ConfChangeAddNode,
    "l": raft_pb2.ConfChangeAddLearnerNode,
    "r": raft_pb2.ConfChangeRemoveNode,
    "u": raft_pb2.ConfChangeUpdateNode,
}


def changes(text: str) -> list[raft_pb2.ConfChangeSingle]:
    """``v1 l2`` and the like."""
    return [raft_pb2.ConfChangeSingle(type=KINDS[word[0]], node_id=int(word[1:])) for word in text.split()]


class World:
    """One configuration and the progress of its members, as a leader keeps them."""

    def __init__(self) -> None:
        self.configuration = Configuration()
        self.progress: dict[int, Progress] = {}
        self.last_index = 0

    def run(self, stanza: datadriven.Stanza) -> str:
        try:
            return self._run(stanza)
        except ConfChangeError as error:
            return str(error)
        finally:
            self.last_index += 1

    def _run(self, stanza: datadriven.Stanza) -> str:
        match stanza.command:
            case "simple":
                self.configuration = self.configuration.simple(changes(stanza.input))
            case "enter-joint":
                auto_leave = stanza.one("autoleave", "false") == "true"
                self.configuration = self.configuration.enter_joint(changes(stanza.input), auto_leave)
            case "leave-joint":
                self.configuration = self.configuration.leave_joint()
            case unknown:
                raise AssertionError(unknown)
        members = self.configuration.members
        self.progress = {node: self.progress.get(node) or self._new() for node in sorted(members)}
        lines = [str(self.configuration)]
        for node, progress in self.progress.items():
            lines.append(f"{node:x}: {progress.describe(node in self.configuration.learners)}")
        return "\n".join(lines)

    def _new(self) -> Progress:
        progress = Progress(max(self.last_index, 1), 10)
        progress.recent_active = True
        return progress


class ScenarioTests(SynchronousTestCase):
    def test_etcds_scenarios(self) -> None:
        """Changes come out as etcd's do, for all of its scenarios, error texts included."""
        files = sorted(SCENARIOS.glob("*.txt"))
        self.assertEqual(len(files), 6)
        for path in files:
            self.assertEqual(datadriven.check(path, World().run), [], path.name)


CHANGES = st.lists(st.tuples(st.sampled_from("vlru"), st.integers(0, 5)).map(lambda t: f"{t[0]}{t[1]}")).map(" ".join)


class ChangeTests(SynchronousTestCase):
    @given(st.lists(st.tuples(st.sampled_from(["simple", "joint", "leave"]), CHANGES), max_size=8))
    def test_any_sequence_keeps_the_rules(self, steps: list[tuple[str, str]]) -> None:
        """No voter learns, next learners are outgoing voters, and the configuration is never without a voter."""
        configuration = Configuration(voters=frozenset({1}))
        for step, text in steps:
            before = configuration
            try:
                match step:
                    case "simple":
                        configuration = configuration.simple(changes(text))
                        self.assertLessEqual(len(before.voters ^ configuration.voters), 1)
                    case "joint":
                        configuration = configuration.enter_joint(changes(text), True)
                        self.assertEqual(configuration.outgoing, before.voters)
                    case _:
                        configuration = configuration.leave_joint()
                        self.assertFalse(configuration.is_joint)
            except ConfChangeError:
                self.assertEqual(configuration, before)
            self.assertTrue(configuration.voters)
            self.assertFalse(configuration.learners & configuration.all_voters)
            self.assertLessEqual(configuration.learners_next, configuration.outgoing - configuration.voters)
            self.assertEqual(Configuration.of(configuration.state), configuration)
            self.assertTrue(configuration.is_possible)

    def test_transition_decides_how(self) -> None:
        """One change is simple unless asked otherwise, several are joint, and none leaves the joint state."""
        one = Configuration(voters=frozenset({1}))
        auto = raft_pb2.ConfChangeV2(changes=changes("v2"))
        self.assertEqual(one.changed(auto).state, ConfState((1, 2)))
        several = raft_pb2.ConfChangeV2(changes=changes("v2 v3"))
        self.assertEqual(one.changed(several).state, ConfState((1, 2, 3), voters_outgoing=(1,), auto_leave=True))
        explicit = raft_pb2.ConfChangeV2(changes=changes("v2"), transition=raft_pb2.ConfChangeTransitionJointExplicit)
        joint = one.changed(explicit)
        self.assertEqual(joint.state, ConfState((1, 2), voters_outgoing=(1,)))
        self.assertEqual(joint.changed(raft_pb2.ConfChangeV2()).state, ConfState((1, 2)))

    def test_demoted_voter_learns_after_the_joint_state(self) -> None:
        """A voter that becomes a learner votes on until the joint state ends."""
        joint = Configuration(voters=frozenset({1, 2})).enter_joint(changes("l1"), False)
        self.assertEqual(str(joint), "voters=(2)&&(1 2) learners_next=(1)")
        self.assertEqual(str(joint.leave_joint()), "voters=(2) learners=(1)")

    def test_entries_hold_changes(self) -> None:
        """Both wire forms go into an entry and come back; other entries hold none."""
        v1 = raft_pb2.ConfChange(id=7, type=raft_pb2.ConfChangeRemoveNode, node_id=3, context=b"c")
        for change in (v1, as_v2(v1)):
            self.assertEqual(decode(encode(change)), change)
        self.assertEqual(as_v2(v1).changes, changes("r3"))
        self.assertRaises(ValueError, decode, Entry(1, 1, b""))
        self.assertRaises(ValueError, decode, Entry(1, 1, b"\xff", EntryType.CONF_CHANGE))

    def test_unknown_kinds_of_change_are_refused(self) -> None:
        """A type or transition that is not known is not taken for the first of the known ones, which adds a voter."""
        for kind, data in (
            (EntryType.CONF_CHANGE, "10091805"),  # a change of type 9
            (EntryType.CONF_CHANGE_V2, "0809"),  # a transition 9
            (EntryType.CONF_CHANGE_V2, "12040807" + "1005"),  # one single change, of type 7
        ):
            self.assertRaises(ValueError, decode, Entry(1, 1, bytes.fromhex(data), kind))
        with_unknown_field = Entry(1, 1, bytes.fromhex("10011805" + "7801"), EntryType.CONF_CHANGE)
        self.assertEqual(as_v2(decode(with_unknown_field)).changes, changes("r5"))

    def test_impossible_configurations(self) -> None:
        """What no sequence of changes leads to is told from what one does."""
        for state in (
            ConfState(),
            ConfState((), (1,)),
            ConfState((0, 1)),
            ConfState((1, 2), (2,)),
            ConfState((1,), (2,), voters_outgoing=(2,)),
            ConfState((1, 2), voters_outgoing=(2,), learners_next=(3,)),
            ConfState((1, 2), voters_outgoing=(2,), learners_next=(2,)),
            ConfState((1,), auto_leave=True),
        ):
            self.assertFalse(Configuration.of(state).is_possible, state)
