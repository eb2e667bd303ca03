"""Snapshots on their way in: files that are written, examined, told of and deleted."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.station import HeldWorker
from twistedkv.incoming import DIRECTORY, MOST_WAITING, IncomingSnapshots, Receiving
from twistedkv.raft.messages import Message, MessageType, Snapshot, SnapshotMeta
from twistedkv.snapshotreader import SnapshotDamagedError


class IncomingTests(SynchronousTestCase):
    """Files in a scratch directory; whoever examines them is content unless told otherwise."""

    def setUp(self) -> None:
        self.data_dir = Path(self.mktemp())
        self.data_dir.mkdir()
        self.worker = HeldWorker()
        self.arrived: list[Message] = []
        self.examined: list[tuple[Snapshot, bytes, int | None]] = []
        self.damaged = False
        self.incoming = IncomingSnapshots(
            self.data_dir,
            self.worker,  # type: ignore[arg-type]
            self.examine,
            self.arrived.append,
        )
        self.incoming.start()

    def examine(self, snapshot: Snapshot, path: Path, crc32c: int | None) -> None:
        self.examined.append((snapshot, path.read_bytes(), crc32c))
        if self.damaged:
            raise SnapshotDamagedError("a bit is wrong")

    def files(self) -> list[bytes]:
        """What is on the disk."""
        directory = self.data_dir / DIRECTORY
        return sorted(path.read_bytes() for path in directory.iterdir()) if directory.exists() else []

    def begin(self, index: int, crc32c: int | None = None) -> Receiving:
        message = Message(MessageType.SNAPSHOT, 1, sender=2, term=2, snapshot=Snapshot(SnapshotMeta(index, 2)))
        return self.incoming.begin(message, crc32c)

    def receive(self, index: int, content: bytes = b"content") -> None:
        """All of a snapshot."""
        receiving = self.begin(index)
        self.successResultOf(receiving.write(content))
        self.successResultOf(receiving.finish())

    def test_it_is_examined_and_told_of(self) -> None:
        """A snapshot is written in parts; when all is there, and good, Raft hears of it, and its file waits."""
        receiving = self.begin(9, 77)
        self.assertEqual(self.incoming.receiving, 1)
        for part in (b"con", b"tent"):
            self.successResultOf(receiving.write(part))
        self.assertEqual(self.arrived, [])
        self.successResultOf(receiving.finish())
        self.assertEqual(self.examined, [(Snapshot(SnapshotMeta(9, 2)), b"content", 77)])
        self.assertEqual([message.snapshot for message in self.arrived], [Snapshot(SnapshotMeta(9, 2))])
        self.assertEqual(self.incoming.receiving, 0)
        path = self.incoming.take(9)
        assert path is not None
        self.assertEqual(path.read_bytes(), b"content")
        self.assertIsNone(self.incoming.take(9))
        self.incoming.delete(path)
        self.assertEqual(self.files(), [])

    def test_nothing_came(self) -> None:
        """A database of no bytes is examined like any other."""
        receiving = self.begin(9)
        self.successResultOf(receiving.finish())
        self.assertEqual(self.examined[0][1:], (b"", None))

    def test_a_damaged_one(self) -> None:
        """One that is of no use fails, Raft does not hear of it, and its file goes when it is aborted."""
        self.damaged = True
        receiving = self.begin(9)
        self.successResultOf(receiving.write(b"content"))
        self.failureResultOf(receiving.finish(), SnapshotDamagedError)
        receiving.abort()
        self.assertEqual((self.arrived, self.incoming.waiting, self.files()), ([], {}, []))
        self.assertEqual(self.incoming.receiving, 0)

    def test_a_message_without_a_snapshot(self) -> None:
        """A message that says nothing of what it stands for is refused."""
        receiving = self.incoming.begin(Message(MessageType.SNAPSHOT, 1, sender=2), None)
        self.failureResultOf(receiving.finish(), ValueError)
        receiving.abort()
        self.assertEqual((self.arrived, self.files()), ([], []))

    def test_it_is_cut_off(self) -> None:
        """What came of one whose rest does not come is deleted, also if nothing came; twice is no error."""
        receiving, other = self.begin(9), self.begin(10)
        self.successResultOf(receiving.write(b"con"))
        for each in (receiving, receiving, other):
            each.abort()
        self.assertEqual((self.arrived, self.files(), self.incoming.receiving), ([], [], 0))

    def test_it_is_cut_off_while_it_is_examined(self) -> None:
        """A sender that is gone before it has an answer sends it again: this one is not told of, and its file goes."""
        receiving = self.begin(9)
        self.successResultOf(receiving.write(b"content"))
        self.worker.held = True
        finished = receiving.finish()
        receiving.abort()
        self.worker.release()
        self.failureResultOf(finished, ConnectionError)
        self.assertEqual((self.arrived, self.incoming.waiting, self.files()), ([], {}, []))
        self.assertEqual(self.incoming.receiving, 0)

    def test_it_is_cut_off_when_raft_has_it(self) -> None:
        """Once Raft has heard of it the file stays, whatever becomes of the connection."""
        receiving = self.begin(9)
        self.successResultOf(receiving.finish())
        receiving.abort()
        self.assertEqual(len(self.files()), 1)
        self.assertEqual(self.incoming.receiving, 0)

    def test_no_room(self) -> None:
        """A part that cannot be written fails, so that the sender is told."""
        (self.data_dir / DIRECTORY).write_bytes(b"in the way")
        receiving = self.begin(9)
        self.failureResultOf(receiving.write(b"content"), OSError)
        receiving.abort()
        self.assertEqual(self.incoming.receiving, 0)

    def test_several_wait(self) -> None:
        """Raft has a use for one of those that it heard of; the others go."""
        self.receive(9, b"nine")
        self.receive(10, b"ten")
        self.assertEqual(self.files(), [b"nine", b"ten"])
        self.incoming.drop_but(9)
        self.assertEqual(self.files(), [b"nine"])
        self.incoming.drop_but(0)
        self.assertEqual((self.files(), self.incoming.waiting), ([], {}))

    def test_the_same_again(self) -> None:
        """A second one of the same index takes the place of the first."""
        self.receive(9, b"first")
        self.receive(9, b"second")
        self.assertEqual(self.files(), [b"second"])

    def test_no_more_than_can_be_of_use_wait(self) -> None:
        """While one is installed, for however long, others that come do not fill the disk; the last one stays."""
        self.receive(1, b"1")
        taken = self.incoming.take(1)
        for index in range(2, 9):
            self.receive(index, b"%d" % index)
        self.assertEqual(self.files(), [b"1", b"7", b"8"])
        self.assertEqual(len(self.incoming.waiting), MOST_WAITING)
        assert taken is not None
        self.assertEqual(taken.read_bytes(), b"1")

    def test_what_an_earlier_life_left(self) -> None:
        """Files of a process that died are deleted by the next one."""
        directory = self.data_dir / DIRECTORY
        directory.mkdir()
        (directory / "1.db").write_bytes(b"half")
        self.incoming.start()
        self.assertEqual(self.files(), [])
        self.receive(9)
        self.assertEqual(self.files(), [b"content"])

    def test_files_that_cannot_be_deleted(self) -> None:
        """What cannot be deleted is told to the operator, and nothing else happens."""
        directory = self.data_dir / DIRECTORY
        (directory / "directory").mkdir(parents=True)
        self.incoming.start()
        self.incoming.delete(directory / "directory")
        receiving = self.begin(9)
        receiving._path = directory / "directory"
        receiving.abort()
        self.assertTrue((directory / "directory").exists())

    def test_parts_are_written_one_after_the_other(self) -> None:
        """A part is done when it is in the file: whoever sends waits for the disk."""
        self.worker.held = True
        receiving = self.begin(9)
        written: list[Deferred[None]] = [receiving.write(b"a"), receiving.write(b"b")]
        self.assertNoResult(written[0])
        self.worker.step()
        self.successResultOf(written[0])
        self.assertNoResult(written[1])
        self.worker.release()
        self.successResultOf(written[1])
        receiving.abort()
