"""Options: what they may be, where they come from, and what is said about those that cannot be used."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import ILogObserver, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import provider

from twistedkv.config import OPTIONS, ClusterState, CompactionMode, Config
from twistedkv.configload import load_config
from twistedkv.configsources import ConfigError, parse_flags
from twistedkv.options import MemberOptions, configuration_page
from twistedkv.optiontypes import BOOL, InitialCluster, Url, parse_duration_s, parse_size, parse_url

_ROOT = Path(__file__).resolve().parent.parent


class _Case(SynchronousTestCase):
    def load(self, **flags: str) -> Config:
        return load_config({name.replace("_", "-"): text for name, text in flags.items()}, {})

    def refusal(self, **flags: str) -> str:
        text = str(self.assertRaises(ConfigError, self.load, **flags))
        self.assertNotIn("\n", text)
        return text


class DefaultTests(_Case):
    def test_https_on_loopback(self) -> None:
        """Without any option a member serves TLS on this machine alone, from a directory named after it."""
        config = self.load()
        self.assertEqual(config.listen_client_urls, (Url("https", "127.0.0.1", 2379),))
        self.assertEqual(config.data_dir, Path("default.twistedkv"))
        self.assertEqual(config.storage, "sqlite:///default.twistedkv/twistedkv.db")
        self.assertEqual(config.own_certificates_directory, Path("default.twistedkv/pki"))
        self.assertTrue(config.makes_client_certificates)
        self.assertTrue(config.makes_peer_certificates)

    def test_derived_from_other_options(self) -> None:
        """What is advertised is what is listened on, and the cluster is the member alone."""
        config = self.load(name="a", listen_client_urls="https://[::1]:1", listen_peer_urls="https://[::1]:2")
        self.assertEqual(config.advertise_client_urls, config.listen_client_urls)
        self.assertEqual(config.initial_advertise_peer_urls, config.listen_peer_urls)
        self.assertEqual(str(config.initial_cluster), "a=https://[::1]:2")

    def test_quota(self) -> None:
        """A quota of 0 stands for etcd's 2 GiB, a negative one for none."""
        self.assertEqual(self.load().quota_backend_bytes, 2 << 30)
        self.assertLess(self.load(quota_backend_bytes="-1").quota_backend_bytes, 0)

    def test_every_default_is_a_value_of_its_kind(self) -> None:
        """A default can be given by hand as well."""
        given_by_hand = load_config({option.flag: option.default for option in OPTIONS.values() if option.default}, {})
        self.assertEqual(given_by_hand, self.load())


class RefusalTests(_Case):
    def test_names_option_value_and_what_would_be_right(self) -> None:
        """One line is enough to mend a value."""
        self.assertEqual(
            self.refusal(heartbeat_interval="1.5"),
            "--heartbeat-interval is '1.5': expected a whole number of milliseconds from 1 to 50000",
        )

    def test_plaintext_needs_a_word(self) -> None:
        """http:// is refused wherever a URL can stand, unless plaintext is allowed."""
        for option in ("listen-client-urls", "listen-peer-urls", "advertise-client-urls", "listen-metrics-urls"):
            text = self.refusal(**{option: "http://127.0.0.1:9"})
            self.assertIn("--allow-plaintext", text)
            self.assertIn("https://127.0.0.1:9", text)
        self.assertIn("--allow-plaintext", self.refusal(initial_cluster="default=http://127.0.0.1:2380"))
        config = self.load(listen_client_urls="http://127.0.0.1:9", allow_plaintext="true")
        self.assertFalse(config.makes_client_certificates)

    def test_bad_values(self) -> None:
        """What etcd would not take is not taken here either."""
        for option, text in (
            ("name", "a b"),
            ("name", ""),
            ("listen-client-urls", ""),
            ("listen-client-urls", "https://example.com:2379"),  # a name may be another machine's
            ("listen-client-urls", "https://127.0.0.1"),
            ("listen-client-urls", "https://127.0.0.1:2379/path"),
            ("listen-client-urls", "https://127.0.0.1:99999"),
            ("listen-client-urls", "https://127.0.0.1:1,https://127.0.0.1:1"),
            ("listen-client-urls", "ftp://127.0.0.1:1"),
            ("listen-client-urls", "https://u:p@127.0.0.1:1"),
            ("listen-client-urls", "127.0.0.1:2379"),
            ("advertise-client-urls", "https://-bad-:1"),
            ("initial-cluster", "default"),
            ("initial-cluster", "=https://127.0.0.1:2380"),
            ("initial-cluster-state", "old"),
            ("discovery-srv", "no domain"),
            ("discovery-srv", "-x.example.com"),
            ("discovery-srv-name", "a b"),
            ("discovery-srv-name", "two"),  # without a domain
            ("experimental-corrupt-check-time", "-1s"),
            ("experimental-snapshot-catchup-entries", "0"),
            ("strict-reconfig-check", "no"),
            ("initial-cluster", "default=https://127.0.0.1:2380,b=https://127.0.0.1:2380"),
            ("auto-compaction-mode", "hourly"),
            ("heartbeat-interval", "0"),
            ("election-timeout", "499"),
            ("election-timeout", "50001"),
            ("max-request-bytes", "-1"),
            ("max-request-bytes", "1 MB"),
            ("auto-compaction-retention", "1h30"),
            ("auto-compaction-retention", "-1"),
            ("grpc-keepalive-min-time", "5"),
            ("log-level", "loud"),
            ("client-cert-auth", "yes"),
            ("client-cert-auth", "true"),  # without an authority
            ("cert-file", "a.crt"),  # without a key
            ("key-file", "a.key"),
            ("trusted-ca-file", "ca.crt"),  # without a certificate
            ("peer-cert-file", "a.crt"),
        ):
            self.assertIn(f"--{option} is {text!r}", self.refusal(**{option: text}), option)

    def test_one_way_into_a_cluster(self) -> None:
        """Members come from one option or the other."""
        text = self.refusal(discovery_srv="example.com", initial_cluster="default=https://127.0.0.1:2380")
        self.assertEqual(
            text,
            "--discovery-srv is 'example.com': expected only one of --initial-cluster and --discovery-srv",
        )

    def test_names_of_peers(self) -> None:
        """A rule on the names in certificates stands alone, and is not given where nobody shows any."""
        both = {"peer-cert-allowed-cn": "x", "peer-cert-allowed-hostname": "y"}
        self.assertIn("--peer-cert-allowed-hostname is 'y': expected only one of", self.refusal(**both))
        for flag, text in both.items():
            given = {flag: text}
            self.assertTrue(self.load(**given))
            files = {"peer-cert-file": "a.crt", "peer-key-file": "a.key"}
            self.assertIn(f"--{flag} is {text!r}: expected --peer-trusted-ca-file", self.refusal(**given, **files))
            plain = {"listen-peer-urls": "http://127.0.0.1:1", "allow-plaintext": "true"}
            self.assertIn(f"--{flag} is {text!r}: expected https://127.0.0.1:1", self.refusal(**given, **plain))

    def test_election_takes_five_heartbeats(self) -> None:
        """A heartbeat that is lost now and then must not start an election."""
        self.assertEqual(self.load(heartbeat_interval="200").heartbeat_interval_ms, 200)
        self.assertIn("--election-timeout is '1000': expected at least 1005", self.refusal(heartbeat_interval="201"))

    def test_unknown_flag(self) -> None:
        """A flag that does not exist is named, with the nearest one that does."""
        error = self.assertRaises(ConfigError, parse_flags, OPTIONS, ["--data-dri=x"])
        self.assertEqual(str(error), "unknown option --data-dri: did you mean --data-dir?")

    def test_abbreviations_are_unknown(self) -> None:
        """An abbreviation that is clear today might not be tomorrow."""
        self.assertRaises(ConfigError, parse_flags, OPTIONS, ["--heartbeat=1"])

    @given(st.sampled_from(sorted(OPTIONS)), st.text())
    def test_any_text_is_a_value_or_one_line(self, flag: str, text: str) -> None:
        """No text breaks the reading of options."""
        try:
            load_config({flag: text}, {})
        except ConfigError as error:
            self.assertNotIn("\n", str(error))


class ValueTests(_Case):
    def test_retention(self) -> None:
        """A bare number is hours in periodic mode and revisions in the other."""
        self.assertEqual(self.load(auto_compaction_retention="2").auto_compaction_retention, 7200)
        self.assertEqual(self.load(auto_compaction_retention="1h30m").auto_compaction_retention, 5400)
        by_revision = self.load(auto_compaction_mode="revision", auto_compaction_retention="1000")
        self.assertEqual(by_revision.auto_compaction_retention, 1000)
        self.refusal(auto_compaction_mode="revision", auto_compaction_retention="1h")

    def test_durations(self) -> None:
        """Durations are read as Go reads them."""
        for text, seconds in (("0", 0), ("300ms", 0.3), ("1.5s", 1.5), ("2h45m", 9900), (".5s", 0.5), ("10us", 1e-5)):
            self.assertAlmostEqual(parse_duration_s(text), seconds)
        for text in ("", "5", "s", "1h 5m", "1d", "-1s", "1s2"):
            self.assertRaises(ValueError, parse_duration_s, text)

    def test_sizes(self) -> None:
        """Sizes are bytes, or have a unit."""
        self.assertEqual([parse_size(text) for text in ("0", "10B", "2KiB", "512MiB")], [0, 10, 2048, 512 << 20])
        for text in ("", "1K", "1MB", "-1", "1.5MiB", "٣"):
            self.assertRaises(ValueError, parse_size, text)

    @given(st.ip_addresses(), st.integers(0, 65535), st.sampled_from(["http", "https"]))
    def test_urls_survive_being_written(self, address: object, port: int, scheme: str) -> None:
        """A URL of any address reads back as it was written, IPv6 too."""
        url = Url(scheme, str(address), port)
        self.assertEqual(parse_url(str(url)), url)

    def test_cluster(self) -> None:
        """A name may have several URLs, and the others need not be ours."""
        text = "default=https://127.0.0.1:2380,b=https://b.example:2380,b=https://[fe80::1]:2380"
        cluster = self.load(initial_cluster=text).initial_cluster
        self.assertIsInstance(cluster, InitialCluster)
        self.assertEqual(str(cluster), text)
        self.assertEqual(cluster["b"], (Url("https", "b.example", 2380), Url("https", "fe80::1", 2380)))

    def test_first_start(self) -> None:
        """What counts at the first start only is not compared here: on later ones it may be out of date."""
        config = self.load(initial_cluster="a=https://127.0.0.1:9")
        self.assertEqual(str(config.initial_cluster), "a=https://127.0.0.1:9")
        self.assertIs(self.load(initial_cluster_state="existing").initial_cluster_state, ClusterState.EXISTING)

    def test_discovery(self) -> None:
        """With a domain nothing is said of the members, and its last dot does not count."""
        config = self.load(discovery_srv="example.com.", discovery_srv_name="two")
        self.assertEqual((config.discovery_srv, config.discovery_srv_name), ("example.com", "two"))
        self.assertEqual(config.initial_cluster, {})

    def test_one_of_several(self) -> None:
        """A member knows from its options whether there are others."""
        self.assertFalse(self.load().has_others)
        two = "default=https://127.0.0.1:2380,b=https://b:2380"
        for options in ({"initial_cluster": two}, {"initial_cluster_state": "existing"}, {"discovery_srv": "a.b"}):
            self.assertTrue(self.load(**options).has_others)

    def test_certificates_of_one_side(self) -> None:
        """Certificates for clients leave the other members to the member's own."""
        config = self.load(cert_file="a.crt", key_file="a.key")
        self.assertFalse(config.makes_client_certificates)
        self.assertTrue(config.makes_peer_certificates)


class SourceTests(_Case):
    def setUp(self) -> None:
        self.events: list[str | None] = []

        @provider(ILogObserver)
        def observe(event: dict[str, Any]) -> None:
            if event["log_level"] is LogLevel.warn:
                self.events.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def file(self, text: str) -> str:
        path = self.mktemp()
        Path(path).write_text(text)
        return path

    def test_flag_over_environment_over_file(self) -> None:
        """The nearer to the command line, the stronger."""
        path = self.file('name = "file"\nsnapshot-count = 7\ninitial-cluster-token = "file"\n')
        environment = {"TWISTEDKV_NAME": "environment", "TWISTEDKV_INITIAL_CLUSTER_TOKEN": "environment"}
        config = load_config({"name": "flag", "config": path}, environment)
        self.assertEqual((config.name, config.initial_cluster_token, config.snapshot_count), ("flag", "environment", 7))

    def test_file_named_by_the_environment(self) -> None:
        """The file can be named in the environment, under etcd's name of the option."""
        path = self.file('name = "file"\n')
        self.assertEqual(load_config({}, {"TWISTEDKV_CONFIG_FILE": path}).name, "file")
        self.assertEqual(self.events, [])

    def test_file_values(self) -> None:
        """Booleans, numbers and lists of the file are what they look like."""
        path = self.file(
            'allow-plaintext = true\nlisten-client-urls = ["http://127.0.0.1:1", "http://[::1]:1"]\n'
            'auto-compaction-mode = "revision"\n'
        )
        config = self.load(config=path)
        self.assertEqual(len(config.listen_client_urls), 2)
        self.assertIs(config.auto_compaction_mode, CompactionMode.REVISION)

    def test_source_is_named(self) -> None:
        """A refusal says where the value came from."""
        path = self.file("heartbeat-interval = 0\n")
        self.assertIn(f"heartbeat-interval in {path} is '0'", self.refusal(config=path))
        error = self.assertRaises(ConfigError, load_config, {}, {"TWISTEDKV_NAME": "a b"})
        self.assertIn("TWISTEDKV_NAME is 'a b'", str(error))

    def test_bad_files(self) -> None:
        """A file that is missing, broken, or has a key that is no option is refused."""
        self.assertIn("No such file", self.refusal(config="/nonexistent/node.toml"))
        self.assertIn("is not TOML", self.refusal(config=self.file("name = \n")))
        self.assertIn("unknown key 'data_dir'", self.refusal(config=self.file('data_dir = "x"\n')))
        self.assertIn("is a dict", self.refusal(config=self.file("[name]\n")))
        self.assertIn("is a float", self.refusal(config=self.file("heartbeat-interval = 1.5\n")))

    def test_names_of_later_releases(self) -> None:
        """An option is also known by the name that a later release of etcd gives it, in every source."""
        path = self.file("snapshot-catchup-entries = 7\n")
        self.assertEqual(self.load(config=path).snapshot_catchup_entries, 7)
        environment = {"TWISTEDKV_SNAPSHOT_CATCHUP_ENTRIES": "8"}
        self.assertEqual(load_config({"config": path}, environment).snapshot_catchup_entries, 8)
        flags = parse_flags(OPTIONS, ["--experimental-snapshot-catchup-entries=9", "--corrupt-check-time", "2s"])
        config = load_config(flags | {"config": path}, environment)
        self.assertEqual((config.snapshot_catchup_entries, config.corrupt_check_time_s), (9, 2))
        self.assertEqual(self.events, [])

    def test_both_names(self) -> None:
        """Both names of one option in one place are a mistake, and the name that was used is told."""
        flags = {"snapshot-catchup-entries": "1", "experimental-snapshot-catchup-entries": "1"}
        text = str(self.assertRaises(ConfigError, load_config, flags, {}))
        self.assertIn("--snapshot-catchup-entries and --experimental-snapshot-catchup-entries are one option", text)
        error = self.assertRaises(ConfigError, load_config, {}, {"TWISTEDKV_SNAPSHOT_CATCHUP_ENTRIES": "x"})
        self.assertIn("TWISTEDKV_SNAPSHOT_CATCHUP_ENTRIES is 'x'", str(error))

    def test_unknown_variable_is_warned_about(self) -> None:
        """A variable that names no option is warned about and ignored, as by etcd; an empty one is unset."""
        load_config({}, {"TWISTEDKV_NMAE": "a", "TWISTEDKV_NAME": "", "NAME": "b"})
        self.assertEqual(self.events, ["unrecognized environment variable TWISTEDKV_NMAE"])


class FlagTests(_Case):
    def test_forms(self) -> None:
        """Flags are written in all the ways that etcd takes."""
        arguments = ["--name=a", "-data-dir", "b", "--unsafe-no-fsync", "--client-cert-auth=false", "--name", "c"]
        self.assertEqual(
            parse_flags(OPTIONS, arguments),
            {"name": "c", "data-dir": "b", "unsafe-no-fsync": "true", "client-cert-auth": "false"},
        )

    def test_only_a_boolean_stands_alone(self) -> None:
        """A flag without its value is refused, and does not take the next flag for one."""
        for option in OPTIONS.values():
            for name in option.names:
                if option.kind is BOOL:
                    self.assertEqual(parse_flags(OPTIONS, [f"--{name}"]), {name: "true"})
                else:
                    self.assertRaises(ConfigError, parse_flags, OPTIONS, [f"--{name}"])

    def test_arguments_that_are_no_flags(self) -> None:
        """A word by itself is refused."""
        for argument in ("name", "-", "--", ""):
            self.assertRaises(ConfigError, parse_flags, OPTIONS, [argument])


class TwistdOptionsTests(_Case):
    def setUp(self) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", self.out)
        self.patch(sys, "stderr", self.err)
        self.patch(os, "environ", {})

    def end(self, *arguments: str) -> tuple[object, str, str]:
        status = self.assertRaises(SystemExit, MemberOptions().parseOptions, arguments).code
        return status, self.out.getvalue(), self.err.getvalue()

    def test_config(self) -> None:
        """What twistd hands over becomes the configuration."""
        options = MemberOptions()
        options.parseOptions(["--name=a"])
        self.assertEqual(options.config.name, "a")

    def test_mistake_is_one_line_and_status_2(self) -> None:
        """A mistake ends the process with one line on standard error and status 2."""
        self.assertEqual(self.end("--nonsense"), (2, "", "twistedkv: unknown option --nonsense\n"))

    def test_help_has_every_option(self) -> None:
        """--help lists all options with their defaults."""
        status, out, _ = self.end("--help")
        self.assertEqual(status, 0)
        for option in OPTIONS.values():
            for name in option.names:
                self.assertIn(f"--{name}", out)
        self.assertLessEqual(max(map(len, out.splitlines())), 80)

    def test_version(self) -> None:
        """--version tells the version of twistedkv, not of Twisted."""
        status, out, _ = self.end("--version")
        self.assertEqual((status, out.split()[0]), (0, "twistedkv"))

    def test_page_is_fresh(self) -> None:
        """docs/configuration.md is what the table of options makes of it."""
        self.assertEqual((_ROOT / "docs" / "configuration.md").read_text(), configuration_page())
