"""The package installs, is found by twistd, and leaves nothing behind.

Takes its time and the network, and so runs only with ``TWISTEDKV_TEST_INSTALL=1`` (``make test-install``).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

_ROOT = Path(__file__).resolve().parent.parent
_RUN_TWISTD = "from twisted.scripts.twistd import run; run()"


class InstallTests(SynchronousTestCase):
    if os.environ.get("TWISTEDKV_TEST_INSTALL") != "1":
        skip = "set TWISTEDKV_TEST_INSTALL=1 to install into new environments"

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute() / "with space"
        self.directory.mkdir(parents=True)
        self.run_in(sys.executable, "-m", "venv", "venv")
        self.python = str(self.directory / "venv" / "bin" / "python")

    def run_in(self, *command: str) -> str:
        clean = {name: text for name, text in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        result = subprocess.run(
            command, cwd=self.directory, env=clean, capture_output=True, text=True, timeout=300, check=False
        )
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return result.stdout + result.stderr

    def pip(self, *arguments: str) -> None:
        self.run_in(self.python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)

    def check(self, *install: str) -> None:
        """Install, look for the plugin, uninstall, and look again."""
        self.pip("install", *install, str(_ROOT))
        plugins = self.directory.glob("venv/lib/*/site-packages/twisted/plugins/__init__.py")
        self.assertEqual(len(list(plugins)), 1)  # Twisted's own
        with_plugin = self.run_in(self.python, "-c", _RUN_TWISTD, "--help")
        self.assertIn("twistedkv", with_plugin)
        self.assertNotIn("Traceback", with_plugin)
        options = self.run_in(str(self.directory / "venv" / "bin" / "twistd"), "twistedkv", "--help")
        self.assertIn("--listen-client-urls", options)
        self.assertIn("version: ", self.run_in(str(self.directory / "venv" / "bin" / "twistedkvctl"), "version"))
        self.pip("uninstall", "--yes", "twistedkv")
        without = self.run_in(self.python, "-c", _RUN_TWISTD, "--help")
        self.assertIn("A modern", without)  # twisted.web's plugin is still there
        self.assertNotIn("twistedkv", without)
        self.assertNotIn("Traceback", without)
        self.assertEqual(list(self.directory.glob("venv/**/*twistedkv*")), [])

    def test_installs_and_uninstalls(self) -> None:
        """``pip install .`` and ``pip install -e .`` each make ``twistd twistedkv`` work, until ``pip uninstall``."""
        self.check()
        self.check("--editable")


class ProjectTests(SynchronousTestCase):
    def test_plugin_directory_is_no_package(self) -> None:
        """An ``__init__.py`` beside the plugin would hide Twisted's own plugins."""
        self.assertEqual(list((_ROOT / "tap").rglob("__init__.py")), [])

    def test_everything_is_typed_and_linted(self) -> None:
        """The strict settings of the project are still on."""
        project = tomllib.loads((_ROOT / "pyproject.toml").read_text())
        self.assertIs(project["tool"]["mypy"]["strict"], True)
        self.assertIn("TID", project["tool"]["ruff"]["lint"]["select"])
