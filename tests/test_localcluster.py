"""The files of a cluster on one machine: what its scripts say, and what is left alone."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from twistedkv.certs import Certificates
from twistedkv.config import OPTIONS, Config
from twistedkv.configload import load_config
from twistedkv.configsources import parse_flags
from twistedkv.datadir import DataDirectory
from twistedkv.founding import check_advertised, check_named, new_cluster
from twistedkv.localcluster import PORTS, LocalCluster, LocalClusterError, Member, is_running
from twistedkv.service import with_own_certificates


class LocalClusterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.said: list[str] = []
        self.directory = Path(self.mktemp()) / "with space"
        self.cluster = LocalCluster(self.directory, None, self.said.append)

    def config_of(self, member: Member, files: Certificates) -> Config:
        """What a member reads off its script's command line."""
        words = shlex.split(self.cluster.script_of(member, files).replace("\\\n", ""), comments=True)
        return load_config(parse_flags(OPTIONS, words[words.index("twistedkv") + 1 :]), {})

    def test_members_fit_together(self) -> None:
        """The three members take their options, found one cluster, and have certificates that exist."""
        files = self.cluster.prepare()
        foundings = []
        for member, (client, peer) in zip(self.cluster.members, PORTS, strict=True):
            config = self.config_of(member, files)
            check_named(config.initial_cluster, config.name)
            check_advertised(config.initial_cluster, config.name, config.initial_advertise_peer_urls)
            foundings.append(new_cluster(config.initial_cluster, config.name, config.initial_cluster_token))
            self.assertEqual([url.port for url in config.listen_client_urls + config.listen_peer_urls], [client, peer])
            self.assertIs(with_own_certificates(config), config)  # it makes none of its own
            for path in (config.cert_file, config.peer_key_file, config.peer_trusted_ca_file, config.trusted_ca_file):
                self.assertTrue(Path(path).is_file(), path)
            self.assertEqual(config.data_dir, member.data)
        self.assertEqual(len({founding.cluster_id for founding in foundings}), 1)
        self.assertEqual(len({founding.member_id for founding in foundings}), 3)

    def test_ports(self) -> None:
        """Other ports come in a row."""
        ports = [(each.client_port, each.peer_port) for each in LocalCluster(self.directory, 7000, print).members]
        self.assertEqual(ports, [(7000, 7001), (7002, 7003), (7004, 7005)])

    def test_script_becomes_its_command(self) -> None:
        """The script leaves its pid, which is then the member's, and hands on every word as it is."""
        member = self.cluster.members[0]
        self.cluster.prepare()
        command = [sys.executable, "-c", "import os, sys; print(os.getpid(), sys.argv[1])", "a  b'c\"$d"]
        start = member.script.read_text().index("exec ")
        member.script.write_text(member.script.read_text()[:start] + f"exec {shlex.join(command)}\n")
        done = subprocess.run([member.script], capture_output=True, text=True, check=True)
        self.assertEqual(done.stdout, f"{member.pid_file.read_text().strip()} a  b'c\"$d\n")

    def test_scripts_are_written_anew(self) -> None:
        """Another time the same files are made; nothing unfinished is left."""
        self.cluster.prepare()
        before = {path: path.read_bytes() for path in self.directory.rglob("*") if path.is_file()}
        self.cluster.prepare()
        self.assertEqual({path: path.read_bytes() for path in self.directory.rglob("*") if path.is_file()}, before)
        self.assertEqual(len([path for path in before if os.access(path, os.X_OK)]), 3)

    def test_other_ports(self) -> None:
        """Members that have begun keep their ports: others are refused, and their scripts stay."""
        self.cluster.prepare()
        script = self.cluster.members[0].script
        other = LocalCluster(self.directory, 7000, print)
        other.prepare()  # nobody has begun yet
        self.cluster.prepare()
        before = script.read_text()
        self.cluster.members[0].data.mkdir()
        text = str(self.assertRaises(LocalClusterError, other.prepare))
        self.assertIn("have other ports", text)
        self.assertEqual(script.read_text(), before)
        self.cluster.prepare()

    def test_running_member_is_seen(self) -> None:
        """A member runs as long as a process holds its data, and looking does not disturb it."""
        self.cluster.prepare()
        member = self.cluster.members[0]
        self.assertFalse(is_running(member))
        holder = DataDirectory(member.data)
        holder.claim()
        self.assertTrue(is_running(member))
        self.assertTrue(is_running(member))
        holder.release()
        self.assertFalse(is_running(member))
        holder.claim()
        holder.release()
