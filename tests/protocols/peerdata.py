"""What a real etcd sent on its streams, and messages made up by hypothesis."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from twistedkv.raft.messages import ConfState, Entry, EntryType, Message, MessageType, Snapshot, SnapshotMeta

ETCD, OURS = 0x3E277A9721FF17AA, 0x1FFFA9580817A4D2


def recorded(name: str) -> bytes:
    """One of the recordings of testdata/etcd_streams.txt."""
    text = (Path(__file__).parent / "testdata" / "etcd_streams.txt").read_text()
    paragraphs = [paragraph.partition("\n") for paragraph in text.split("\n\n")]
    return bytes.fromhex(next(body for head, _, body in paragraphs if head == name))


numbers = st.one_of(st.integers(0, 300), st.integers(0, (1 << 64) - 1))
entries = st.builds(Entry, numbers, numbers, st.binary(max_size=300), st.sampled_from(EntryType))
ids = st.lists(numbers, max_size=3).map(tuple)
snapshots = st.builds(
    Snapshot,
    st.builds(SnapshotMeta, numbers, numbers, st.builds(ConfState, ids, ids, ids, ids, st.booleans())),
    st.binary(max_size=30),
)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Any message, with a snapshot if it is of that type."""
    kind = draw(st.sampled_from(MessageType))
    return Message(
        kind,
        *(draw(numbers) for _ in range(5)),
        draw(st.lists(entries, max_size=4)) or (),
        draw(numbers),
        draw(snapshots) if kind is MessageType.SNAPSHOT else None,
        draw(st.booleans()),
        draw(numbers),
        draw(st.binary(max_size=20)),
    )


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """``data`` in pieces of these sizes, and the rest."""
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]
