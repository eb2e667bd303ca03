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

    def test_directory_that_cannot_be_made(self) -> None:
        """A directory that cannot be made is one line on standard error and status 1."""
        result = self.run_command("certs", "/dev/null/pki")
        self.assertEqual((result.exit_code, result.stdout, result.stderr.count("\n")), (1, "", 1))
        self.assertIn("/dev/null/pki", result.stderr)


class UsageTests(_Case):
    def test_unknown_command(self) -> None:
        """An unknown command is status 2."""
        self.assertEqual(self.run_command("nonsense").exit_code, 2)
