"""Whether a message can have been said by a member: one that can not is dropped before it touches anything.

Raft trusts its members, so most lies can not be told from the truth. But what contradicts itself is no member's: it is
the work of a defect or of somebody else, and etcd's own library goes on with it, into a log with holes or a panic
(etcd-io/etcd#21518). What depends on who is asked, and not on the message alone, is looked at in
:meth:`~twistedkv.raft.node.RaftNode.step`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from twistedkv.raft.confchange import Configuration
from twistedkv.raft.messages import Entry, Message, MessageType, Snapshot

# Said on somebody's behalf to whoever leads, in whichever term (etcd raft.go, send).
FORWARDED = frozenset({MessageType.PROPOSE, MessageType.READ_INDEX})

_APPEND: Final = MessageType.APPEND  # a name of the module is found ten times as fast
_SNAPSHOT: Final = MessageType.SNAPSHOT
_READ_INDEX_RESPONSE: Final = MessageType.READ_INDEX_RESPONSE


def is_sound(message: Message) -> bool:
    """Whether the fields of ``message`` fit each other."""
    kind, term = message.type, message.term
    if message.sender == 0:
        return False
    if kind in FORWARDED:
        return bool(message.entries)
    if term == 0 or message.log_term > term:
        return False  # whoever says something is in a term, and has no entry of a later one
    if kind is _APPEND:
        return not message.entries or _follow(message.entries, message.index, message.log_term, term)
    if kind is _SNAPSHOT:
        return _fits(message.snapshot, term)
    return kind is not _READ_INDEX_RESPONSE or len(message.entries) == 1


def _follow(entries: Sequence[Entry], index: int, log_term: int, term: int) -> bool:
    """Whether ``entries`` come one after the other behind the one at ``index``, and their terms never fall."""
    last_term = log_term or 1  # no entry is of term 0
    for entry_term, entry_index, _, _ in entries:
        index += 1
        if entry_index != index or entry_term < last_term:
            return False
        last_term = entry_term
    return last_term <= term


def _fits(snapshot: Snapshot | None, term: int) -> bool:
    return (
        snapshot is not None
        and 0 < snapshot.meta.term <= term
        and Configuration.of(snapshot.meta.conf_state).is_possible
    )
