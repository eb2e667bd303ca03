"""twistedkvctl: the commands that need no member."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from twistedkv import __version__
from twistedkv.cli import main


class _Case(SynchronousTestCase):
    def run_command(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, arguments)


class VersionTests(_Case):
    def test_option(self) -> None:
        """--version prints one line."""
        self.assertEqual(self.run_command("--version").output, f"twistedkvctl, version {__version__}\n")

    def test_command(self) -> None:
        """version prints what etcdctl's prints: its own version and the API's."""
        result = self.run_command("version")
        self.assertEqual(result.output, f"twistedkvctl version: {__version__}\nAPI version: 3.5\n")


class CertsTests(_Case):
    def test_fills_a_directory(self) -> None:
        """certs makes four pairs and says where they are; a second run keeps them."""
        directory = Path(self.mktemp())
        result = self.run_command("certs", str(directory), "--host", "db.example")
        self.assertEqual((result.exit_code, result.output.count("\n")), (0, 4))
        client = (directory / "client.key").read_bytes()
        self.assertEqual(self.run_command("certs", str(directory), "--host", "db.example").exit_code, 0)
        self.assertEqual((directory / "client.key").read_bytes(), client)

    def test_members_with_one_authority(self) -> None:
        """With --ca a member's directory gets all but the authority's key."""
        root = Path(self.mktemp())
        for name in ("a", "b"):
            result = self.run_command("certs", str(root / name), "--ca", str(root / "ca"), "--host", "db.example")
            self.assertEqual((result.exit_code, result.output.count("\n")), (0, 4))
        self.assertEqual((root / "a" / "ca.crt").read_bytes(), (root / "b" / "ca.crt").read_bytes())
        self.assertFalse((root / "a" / "ca.key").exists())
        result = self.run_command("certs", str(root / "ca"))  # the operator's own pair
        self.assertEqual(result.exit_code, 0)
        result = self.run_command("certs", str(root / "a"), "--ca", str(root / "other"))
        self.assertEqual((result.exit_code, result.stderr.count("\n")), (1, 1))

    def test_directory_that_cannot_be_made(self) -> None:
        """A directory that cannot be made is one line on standard error and status 1."""
        result = self.run_command("certs", "/dev/null/pki")
        self.assertEqual((result.exit_code, result.stdout, result.stderr.count("\n")), (1, "", 1))
        self.assertIn("/dev/null/pki", result.stderr)


class ClusterTests(_Case):
    def test_directory_that_cannot_be_made(self) -> None:
        """Without a place for it no cluster is started, and one line says so."""
        result = self.run_command("cluster", "--directory", "/dev/null/cluster")
        self.assertEqual((result.exit_code, result.stdout, result.stderr.count("\n")), (1, "", 1))
        self.assertIn("/dev/null/cluster", result.stderr)


class UsageTests(_Case):
    def test_unknown_command(self) -> None:
        """An unknown command is status 2."""
        self.assertEqual(self.run_command("nonsense").exit_code, 2)
