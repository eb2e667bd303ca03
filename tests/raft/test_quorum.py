"""Majorities: etcd's scenarios, and the laws that hold for any configuration (Raft §5.3, §6)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import datadriven
from twistedkv.raft.quorum import (
    EVERYTHING,
    VoteResult,
    joint_committed,
    joint_vote,
    majority_committed,
    majority_vote,
)

SCENARIOS = Path(__file__).with_name("testdata") / "quorum"
VERDICTS = {VoteResult.WON: "VoteWon", VoteResult.LOST: "VoteLost", VoteResult.PENDING: "VotePending"}


def ids(values: Collection[str]) -> list[int]:
    return [int(value) for value in values if value != "zero"]


def brute_force(voters: Collection[int], indexes: Mapping[int, int]) -> int:
    """The highest index that enough voters are at, by counting."""
    if not voters:
        return EVERYTHING
    candidates = {0, *indexes.values()}
    return max(c for c in candidates if 2 * sum(indexes.get(v, 0) >= c for v in voters) > len(voters) or c == 0)


def table(voters: Collection[int], indexes: Mapping[int, int]) -> str:
    """etcd's drawing of who is how far."""
    if not voters:
        return ""
    rows = [" " * len(voters) + "    idx"]
    for voter in sorted(voters):
        index = indexes.get(voter)
        behind = sum((indexes.get(other, -1)) < index for other in voters) if index is not None else 0
        bar = "?" + " " * len(voters) if index is None else "x" * behind + ">" + " " * (len(voters) - behind)
        rows.append(f"{bar} {index or 0:5}    (id={voter:x})")
    return "\n".join(rows) + "\n"


def run(stanza: datadriven.Stanza) -> str:
    incoming, outgoing = ids(stanza.args.get("cfg", [])), ids(stanza.args.get("cfgj", []))
    distinct = list(dict.fromkeys([*incoming, *outgoing]))
    if stanza.command == "vote":
        said = {v: word == "y" for v, word in zip(distinct, stanza.args.get("votes", []), strict=True) if word != "_"}
        result = joint_vote(incoming, outgoing, said)
        assert joint_vote(outgoing, incoming, said) is result
        if not outgoing:
            assert majority_vote(incoming, said) is result
        return VERDICTS[result]
    indexes = {v: int(word) for v, word in zip(distinct, stanza.args.get("idx", []), strict=True) if word != "_"}
    committed = joint_committed(incoming, outgoing, lambda voter: indexes.get(voter, 0))
    drawn = table(distinct, indexes)
    if not distinct:
        return "<empty majority quorum>∞"
    return f"{drawn}{'∞' if committed == EVERYTHING else committed}"


class ScenarioTests(SynchronousTestCase):
    def test_etcds_scenarios(self) -> None:
        """Commit indexes and votes come out as etcd's do, for all of its quorum scenarios."""
        files = sorted(SCENARIOS.glob("*.txt"))
        self.assertEqual(len(files), 3)
        for path in files:
            self.assertEqual(datadriven.check(path, run), [], path.name)


VOTERS = st.frozensets(st.integers(1, 7), max_size=5)


class LawTests(SynchronousTestCase):
    @given(VOTERS, VOTERS, st.dictionaries(st.integers(1, 7), st.integers(0, 9)))
    def test_committed_is_what_counting_gives(
        self, incoming: frozenset[int], outgoing: frozenset[int], indexes: dict[int, int]
    ) -> None:
        """The commit index of each half is the highest one that more than half reached; a joint one is the lower."""

        def acknowledged(voter: int) -> int:
            return indexes.get(voter, 0)

        halves = [brute_force(half, indexes) for half in (incoming, outgoing)]
        self.assertEqual([majority_committed(half, acknowledged) for half in (incoming, outgoing)], halves)
        self.assertEqual(joint_committed(incoming, outgoing, acknowledged), min(halves))
        self.assertEqual(joint_committed(outgoing, incoming, acknowledged), min(halves))

    @given(VOTERS, VOTERS, st.dictionaries(st.integers(1, 7), st.booleans()))
    def test_vote_is_won_when_nothing_can_change_it(
        self, incoming: frozenset[int], outgoing: frozenset[int], votes: dict[int, bool]
    ) -> None:
        """Won stays won if all others say no, lost stays lost if all others say yes, and pending is neither."""
        everyone = incoming | outgoing
        result = joint_vote(incoming, outgoing, votes)
        worst = joint_vote(incoming, outgoing, {voter: votes.get(voter, False) for voter in everyone})
        best = joint_vote(incoming, outgoing, {voter: votes.get(voter, True) for voter in everyone})
        self.assertNotIn(VoteResult.PENDING, (worst, best))
        self.assertEqual(result is VoteResult.WON, worst is VoteResult.WON)
        self.assertEqual(result is VoteResult.LOST, best is VoteResult.LOST)
