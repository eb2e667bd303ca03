"""A deterministic world of nodes for etcd's interaction scenarios: storage in memory, messages in a list, no clock.

It prints what etcd's own harness prints, without the log sentences of its library. With ``async-storage-writes`` each
member has a slow disk, whose work ``process-append-thread`` ends, and a state that is behind what Raft has handed on,
which ``process-apply-thread`` brings up to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random

from tests.datadriven import Stanza
from twistedkv.pb import raft_pb2
from twistedkv.raft import confchange
from twistedkv.raft.log import RaftLog
from twistedkv.raft.messages import (
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    Ready,
    Role,
    Snapshot,
    SnapshotMeta,
)
from twistedkv.raft.node import Config, RaftNode

LETTERS = {
    "v": raft_pb2.ConfChangeAddNode,
    "l": raft_pb2.ConfChangeAddLearnerNode,
    "r": raft_pb2.ConfChangeRemoveNode,
    "u": raft_pb2.ConfChangeUpdateNode,
}
TRANSITIONS = {
    "auto": raft_pb2.ConfChangeTransitionAuto,
    "implicit": raft_pb2.ConfChangeTransitionJointImplicit,
    "explicit": raft_pb2.ConfChangeTransitionJointExplicit,
}
ROLES = {
    Role.FOLLOWER: "StateFollower",
    Role.PRE_CANDIDATE: "StatePreCandidate",
    Role.CANDIDATE: "StateCandidate",
    Role.LEADER: "StateLeader",
}
TYPES = {
    MessageType.PROPOSE: "MsgProp",
    MessageType.APPEND: "MsgApp",
    MessageType.APPEND_RESPONSE: "MsgAppResp",
    MessageType.VOTE: "MsgVote",
    MessageType.VOTE_RESPONSE: "MsgVoteResp",
    MessageType.SNAPSHOT: "MsgSnap",
    MessageType.HEARTBEAT: "MsgHeartbeat",
    MessageType.HEARTBEAT_RESPONSE: "MsgHeartbeatResp",
    MessageType.TRANSFER_LEADER: "MsgTransferLeader",
    MessageType.TIMEOUT_NOW: "MsgTimeoutNow",
    MessageType.PRE_VOTE: "MsgPreVote",
    MessageType.PRE_VOTE_RESPONSE: "MsgPreVoteResp",
}
ANSWERS = {MessageType.APPEND_RESPONSE, MessageType.HEARTBEAT_RESPONSE}


class Member:
    """One node with what a driver keeps for it."""

    def __init__(self, config: Config, snapshot: SnapshotMeta, *, slow: bool) -> None:
        log = RaftLog((), snapshot.index, snapshot.term)
        self.snapshot = snapshot  # of the state as applied
        self.slow = slow
        self.working: Ready | None = None  # what a slow disk is busy with
        self.to_apply: list[Entry] = []  # what a slow state is behind by
        self.node = RaftNode(
            config, log, HardState(), snapshot.conf_state, snapshot.index, take_snapshot=lambda: Snapshot(self.snapshot)
        )

    def apply(self, ready: Ready) -> None:
        if ready.snapshot is not None:
            self.snapshot = ready.snapshot.meta
        for entry in ready.committed:
            state = self.snapshot.conf_state
            if entry.type is not EntryType.NORMAL:
                state = self.node.apply_conf_change(confchange.decode(entry))
            self.snapshot = SnapshotMeta(entry.index, entry.term, state)


class World:
    """All nodes and the messages between them."""

    def __init__(self) -> None:
        self.members: dict[int, Member] = {}
        self.messages: list[Message] = []
        self.quiet = False

    def run(self, stanza: Stanza) -> str:
        """Carry out one command; what it prints."""
        quiet = self.quiet or stanza.one("log-level", "") == "none"
        try:
            output = getattr(self, "on_" + stanza.command.replace("-", "_"))(stanza)
        except ProposalDropped:
            return "raft proposal dropped"
        return "" if quiet else output

    def node(self, stanza: Stanza) -> RaftNode:
        return self.members[int(stanza.positional[0])].node

    # --- the world ---------------------------------------------------------------------------------

    def on_log_level(self, stanza: Stanza) -> str:
        self.quiet = stanza.positional[0].lower() == "none"
        return ""

    def on_add_nodes(self, stanza: Stanza) -> str:
        voters, learners = (tuple(map(int, stanza.args.get(key, []))) for key in ("voters", "learners"))
        index = int(stanza.one("index", "0"))
        snapshot = SnapshotMeta(index, 1 if index else 0, ConfState(voters, learners))
        for _ in range(int(stanza.positional[0])):
            config = Config(
                id=len(self.members) + 1,
                random=Random(len(self.members)),
                election_ticks=3,
                max_size_per_message_bytes=1 << 60,
                max_inflight=int(stanza.one("inflight", "1000000")),
                max_committed_bytes_per_ready=int(stanza.one("max-committed-size-per-ready", str(1 << 60))),
                pre_vote=stanza.one("prevote", "false") == "true",
                check_quorum=stanza.one("checkquorum", "false") == "true",
                step_down_on_removal=stanza.one("step-down-on-removal", "false") == "true",
                validate_conf_changes=stanza.one("disable-conf-change-validation", "false") != "true",
                read_only_lease_based=stanza.one("read-only", "safe") == "lease-based",
            )
            self.members[config.id] = Member(config, snapshot, slow="async-storage-writes" in stanza.args)
        return ""

    def on_process_ready(self, stanza: Stanza) -> str:
        if len(stanza.positional) == 1:
            return self.process_ready(int(stanza.positional[0]))
        parts = []
        for member in map(int, stanza.positional):
            parts.append(f"> {member:x} handling Ready\n" + indented(self.process_ready(member)))
        return "\n".join(parts)

    def process_ready(self, number: int) -> str:
        member = self.members[number]
        if not member.node.has_ready():
            messages, _ = member.node.take_unsynced()
            self.messages += messages
            return "\n".join(["Ready MustSync=false:", *describe_sent(messages)]) if messages else "<empty Ready>"
        ready = member.node.ready()
        if member.slow:
            member.working = ready
            self.messages += ready.messages
            return describe_ready(ready._replace(responses=()))
        member.apply(ready)
        self.messages += [*ready.messages, *ready.responses]
        member.node.advance(ready)
        return describe_ready(ready)

    def on_process_append_thread(self, stanza: Stanza) -> str:
        return self.process_thread("append", self.end_disk_work, list(map(int, stanza.positional)))

    def on_process_apply_thread(self, stanza: Stanza) -> str:
        return self.process_thread("apply", self.end_state_work, list(map(int, stanza.positional)))

    def process_thread(self, name: str, work: Callable[[int], str], numbers: list[int]) -> str:
        done = {number: text for number in numbers if (text := work(number))}
        return "\n".join(f"> {number:x} processing {name} thread\n{indented(text)}" for number, text in done.items())

    def end_disk_work(self, number: int) -> str:
        """The slow disk has what it was given."""
        member = self.members[number]
        ready, member.working = member.working, None
        if ready is None:
            return ""
        assert ready.snapshot is None
        member.to_apply += ready.committed
        self.messages += ready.responses
        member.node.advance(ready)
        lines = ["Processing:", f"{number:x}->AppendThread MsgStorageAppend{describe_entries(ready.entries)}"]
        if ready.hard_state is not None:
            lines[-1] += f" {describe_hard_state(ready.hard_state)}"
        return "\n".join([*lines, "Responses:", *map(describe_message, ready.responses)])

    def end_state_work(self, number: int) -> str:
        """The slow state has what it was given."""
        member = self.members[number]
        applied, member.to_apply = member.to_apply, []
        if not applied:
            return ""
        assert all(entry.type is EntryType.NORMAL for entry in applied)
        return f"Processing:\n{number:x}->ApplyThread MsgStorageApply{describe_entries(applied)}"

    def on_stabilize(self, stanza: Stanza) -> str:
        numbers = list(map(int, (word for word in stanza.positional))) or list(self.members)
        lines, busy = list[str](), True
        while busy:
            busy = False
            for number in numbers:
                if self.members[number].node.has_ready():
                    busy = True
                    lines += [f"> {number:x} handling Ready", indented(self.process_ready(number))]
            for number in numbers:
                if any(message.to == number for message in self.messages):
                    busy = True
                    lines += [f"> {number:x} receiving messages", indented(self.deliver(number))]
            slow = [number for number in numbers if self.members[number].slow]
            work = [self.process_thread("append", self.end_disk_work, slow)]
            work += [self.process_thread("apply", self.end_state_work, slow)]
            busy = busy or any(work)
            lines += filter(None, work)
        return "\n".join(lines)

    def on_deliver_msgs(self, stanza: Stanza) -> str:
        kind = stanza.one("type", "")
        lines = [self.deliver(int(number), kind) for number in stanza.positional]
        lines += [self.deliver(int(number), kind, drop=True) for number in stanza.args.get("drop", [])]
        return "\n".join(line for line in lines if line) or "no messages"

    def deliver(self, number: int, kind: str = "", *, drop: bool = False) -> str:
        def is_meant(message: Message) -> bool:
            return message.to == number and kind in ("", TYPES[message.type])

        meant = [message for message in self.messages if is_meant(message)]
        self.messages = [message for message in self.messages if not is_meant(message)]
        lines = []
        for message in meant:
            lines.append(("dropped: " if drop else "") + describe_message(message))
            if drop:
                continue
            node = self.members[number].node
            if message.type in ANSWERS and message.sender not in node.progress:
                lines.append("raft: cannot step as peer not found")
            node.step(message)
        return "\n".join(lines)

    # --- one node ----------------------------------------------------------------------------------

    def on_campaign(self, stanza: Stanza) -> str:
        self.node(stanza).campaign()
        return ""

    def on_propose(self, stanza: Stanza) -> str:
        self.node(stanza).propose([stanza.positional[1].encode()])
        return ""

    def on_propose_conf_change(self, stanza: Stanza) -> str:
        changes = [
            raft_pb2.ConfChangeSingle(type=LETTERS[word[0]], node_id=int(word[1:])) for word in stanza.input.split()
        ]
        if stanza.one("v1", "false") == "true":
            (single,) = changes
            self.node(stanza).propose_conf_change(raft_pb2.ConfChange(id=0, type=single.type, node_id=single.node_id))
        else:
            transition = TRANSITIONS[stanza.one("transition", "auto")]
            self.node(stanza).propose_conf_change(raft_pb2.ConfChangeV2(transition=transition, changes=changes))
        return ""

    def on_transfer_leadership(self, stanza: Stanza) -> str:
        self.members[int(stanza.one("from", ""))].node.transfer_leader(int(stanza.one("to", "")))
        return ""

    def on_forget_leader(self, stanza: Stanza) -> str:
        self.node(stanza).forget_leader()
        return ""

    def on_report_unreachable(self, stanza: Stanza) -> str:
        self.node(stanza).report_unreachable(int(stanza.positional[1]))
        return ""

    def on_send_snapshot(self, stanza: Stanza) -> str:
        sender, to = map(int, stanza.positional)
        member = self.members[sender]
        message = Message(MessageType.SNAPSHOT, to, sender, member.node.term, snapshot=Snapshot(member.snapshot))
        self.messages.append(message)
        return describe_message(message)

    def on_tick_election(self, stanza: Stanza) -> str:
        for _ in range(self.node(stanza).config.election_ticks):
            self.node(stanza).tick()
        return ""

    def on_tick_heartbeat(self, stanza: Stanza) -> str:
        for _ in range(self.node(stanza).config.heartbeat_ticks):
            self.node(stanza).tick()
        return ""

    def on_set_randomized_election_timeout(self, stanza: Stanza) -> str:
        self.node(stanza)._election_timeout = int(stanza.one("timeout", ""))
        return ""

    def on_compact(self, stanza: Stanza) -> str:
        self.node(stanza).log.compact(int(stanza.positional[1]))
        return self.on_raft_log(stanza)

    # --- what is printed ---------------------------------------------------------------------------

    def on_raft_log(self, stanza: Stanza) -> str:
        log = self.node(stanza).log
        if log.stable == log.compacted:
            return f"log is empty: first index={log.compacted + 1}, last index={log.stable}"
        return "\n".join(map(describe_entry, log.slice(log.compacted + 1, log.stable)))

    def on_raft_state(self, stanza: Stanza) -> str:
        lines = []
        for number, member in self.members.items():
            node = member.node
            voter = "Voter" if number in node.configuration.all_voters else "Non-Voter"
            lines.append(f"{number}: {ROLES[node.role]} ({voter}) Term:{node.term} Lead:{node.leader}")
        return "\n".join(lines)

    def on_status(self, stanza: Stanza) -> str:
        node = self.node(stanza)
        return "\n".join(
            f"{member:x}: {progress.describe(member in node.configuration.learners)}"
            for member, progress in node.progress.items()
        )


def indented(text: str) -> str:
    return "\n".join("  " + line for line in text.split("\n"))


def describe_entry(entry: Entry) -> str:
    head = f"{entry.term}/{entry.index} "
    if entry.type is EntryType.NORMAL:
        quoted = entry.data.decode().replace('"', '\\"')
        return f'{head}EntryNormal "{quoted}"'
    letters = {kind: letter for letter, kind in LETTERS.items()}
    changes = " ".join(
        f"{letters[change.type]}{change.node_id}" for change in confchange.as_v2(confchange.decode(entry)).changes
    )
    name = "EntryConfChange" if entry.type is EntryType.CONF_CHANGE else "EntryConfChangeV2"
    return f"{head}{name} {changes}".rstrip()


def describe_snapshot(meta: SnapshotMeta) -> str:
    state = meta.conf_state
    groups = {
        "Voters": state.voters,
        "VotersOutgoing": state.voters_outgoing,
        "Learners": state.learners,
        "LearnersNext": state.learners_next,
    }
    listed = " ".join(f"{name}:[{' '.join(map(str, ids))}]" for name, ids in groups.items())
    leave = "true" if state.auto_leave else "false"
    return f"Index:{meta.index} Term:{meta.term} ConfState:{listed} AutoLeave:{leave}"


def describe_entries(entries: Sequence[Entry]) -> str:
    if len(entries) == 1:
        return f" Entries:[{describe_entry(entries[0])}]"
    return " Entries:[" + "".join(f"\n  {describe_entry(entry)}" for entry in entries) + "\n]" if entries else ""


def describe_hard_state(state: HardState) -> str:
    return f"Term:{state.term}" + (f" Vote:{state.vote}" if state.vote else "") + f" Commit:{state.commit}"


def describe_sent(messages: Iterable[Message]) -> list[str]:
    described = list(map(describe_message, messages))
    return ["Messages:", *described] if described else []


def describe_message(message: Message) -> str:
    text = f"{message.sender:x}->{message.to:x} {TYPES[message.type]}"
    text += f" Term:{message.term} Log:{message.log_term}/{message.index}"
    if message.reject:
        text += f" Rejected (Hint: {message.reject_hint})"
    if message.commit:
        text += f" Commit:{message.commit}"
    text += describe_entries(message.entries)
    if message.snapshot is not None:
        text += f"\n  Snapshot: {describe_snapshot(message.snapshot.meta)}"
    return text


def describe_ready(ready: Ready) -> str:
    lines = [f"Ready MustSync={'true' if ready.must_sync else 'false'}:"]
    if ready.soft_state is not None:
        lines.append(f"Lead:{ready.soft_state.leader} State:{ROLES[ready.soft_state.role]}")
    if ready.hard_state is not None:
        lines.append(f"HardState {describe_hard_state(ready.hard_state)}")
    if ready.entries:
        lines += ["Entries:", *map(describe_entry, ready.entries)]
    if ready.snapshot is not None:
        lines.append(f"Snapshot {describe_snapshot(ready.snapshot.meta)}")
    if ready.committed:
        lines += ["CommittedEntries:", *map(describe_entry, ready.committed)]
    return "\n".join([*lines, *describe_sent([*ready.messages, *ready.responses])])
