"""The options of a member, each declared once, and the frozen :class:`Config` that holds their values.

An option is a field of :class:`Config`: its section, flag, kind, default and help text. The flags of ``twistd
twistedkv``, its ``--help``, the ``TWISTEDKV_*`` variables, the keys of the file and ``docs/configuration.md`` all
derive from that table. Names and meanings are etcd's (``server/embed/config.go``, ``server/etcdmain/help.go``) wherever
etcd has the option; an option that would do nothing here is not declared. :mod:`twistedkv.configload` fills it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from twisted.logger import LogLevel

from twistedkv import optiontypes as types
from twistedkv.configsources import Option
from twistedkv.optiontypes import InitialCluster, Url

EXTENSIVE = "extensive"
MAX_ELECTION_TIMEOUT_MS = 50_000  # etcd server/embed/config.go: maxElectionMs


class CompactionMode(Enum):
    """What ``--auto-compaction-retention`` counts."""

    PERIODIC = "periodic"
    REVISION = "revision"


class ClusterState(Enum):
    """Whether the members of ``--initial-cluster`` found a cluster, or this one joins the others."""

    NEW = "new"
    EXISTING = "existing"


_COMPACTION_MODE = types.choice({mode.value: mode for mode in CompactionMode})
_CLUSTER_STATE = types.choice({state.value: state for state in ClusterState})
_ENTRIES = types.whole("N", "entries", 1, 10**9)
_MILLISECONDS = types.whole("MS", "milliseconds", 1, MAX_ELECTION_TIMEOUT_MS)
_LOG_LEVEL = types.choice(
    {
        "debug": LogLevel.debug,
        "info": LogLevel.info,
        "warn": LogLevel.warn,
        "error": LogLevel.error,
        "panic": LogLevel.critical,
        "fatal": LogLevel.critical,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a member is told. :func:`twistedkv.configload.load_config` builds it and checks the whole."""

    name: Annotated[str, Option("Member", "name", types.NAME, "default", "Human-readable name of this member.")]
    data_dir: Annotated[
        Path,
        Option(
            "Member", "data-dir", types.PATH, "", "Directory of everything that this member keeps.", "<name>.twistedkv"
        ),
    ]
    storage: Annotated[
        str,
        Option(
            "Member", "storage", types.STORAGE_URL, "", "Database of the keys.", "sqlite:///<data-dir>/twistedkv.db"
        ),
    ]
    listen_client_urls: Annotated[
        tuple[Url, ...],
        Option(
            "Member",
            "listen-client-urls",
            types.LISTEN_URLS,
            "https://127.0.0.1:2379",
            "Where to listen for clients: gRPC, JSON and plain HTTP alike.",
        ),
    ]
    listen_peer_urls: Annotated[
        tuple[Url, ...],
        Option(
            "Member",
            "listen-peer-urls",
            types.LISTEN_URLS,
            "https://127.0.0.1:2380",
            "Where to listen for other members.",
        ),
    ]
    enable_v2: Annotated[
        bool, Option("Member", "enable-v2", types.BOOL, "true", "Serve the v2 API, below /v2 on the clients' port.")
    ]
    heartbeat_interval_ms: Annotated[
        int,
        Option(
            "Member",
            "heartbeat-interval",
            _MILLISECONDS,
            "100",
            "Time between two heartbeats of a leader, in milliseconds.",
        ),
    ]
    election_timeout_ms: Annotated[
        int,
        Option(
            "Member",
            "election-timeout",
            _MILLISECONDS,
            "1000",
            "Silence of the leader after which others stand for election, in milliseconds; at least five heartbeats.",
        ),
    ]
    initial_election_tick_advance: Annotated[
        bool,
        Option(
            "Member",
            "initial-election-tick-advance",
            types.BOOL,
            "true",
            "Begin with most of the election timeout behind it, so that a member that starts waits less for a leader.",
        ),
    ]
    snapshot_count: Annotated[
        int,
        Option(
            "Member",
            "snapshot-count",
            _ENTRIES,
            "100000",
            "Committed entries after which the Raft log is cut short.",
        ),
    ]
    snapshot_catchup_entries: Annotated[
        int,
        Option(
            "Member",
            "experimental-snapshot-catchup-entries",
            _ENTRIES,
            "5000",
            "Entries that the log keeps when it is cut short; a member further behind is sent a snapshot.",
            alias="snapshot-catchup-entries",
        ),
    ]
    advertise_client_urls: Annotated[
        tuple[Url, ...],
        Option(
            "Clustering",
            "advertise-client-urls",
            types.URLS,
            "",
            "Where clients reach this member; every member tells it to them.",
            "--listen-client-urls",
        ),
    ]
    initial_advertise_peer_urls: Annotated[
        tuple[Url, ...],
        Option(
            "Clustering",
            "initial-advertise-peer-urls",
            types.URLS,
            "",
            "Where other members reach this one.",
            "--listen-peer-urls",
        ),
    ]
    initial_cluster: Annotated[
        InitialCluster,
        Option(
            "Clustering",
            "initial-cluster",
            types.CLUSTER,
            "",
            "Members that found the cluster together, or, to join one, all of its members and this one; its own URLs "
            "as --initial-advertise-peer-urls writes them. Read at the first start only.",
            "<name>=<initial-advertise-peer-urls>",
        ),
    ]
    initial_cluster_state: Annotated[
        ClusterState,
        Option(
            "Clustering",
            "initial-cluster-state",
            _CLUSTER_STATE,
            "new",
            "Whether the members of --initial-cluster found a cluster, or this one joins the others, who were told of "
            "it by `etcdctl member add`. Read at the first start only.",
        ),
    ]
    initial_cluster_token: Annotated[
        str,
        Option(
            "Clustering",
            "initial-cluster-token",
            types.TEXT,
            "etcd-cluster",
            "Text that goes into the ids of cluster and members, so that two clusters never mix.",
        ),
    ]
    discovery_srv: Annotated[
        str,
        Option(
            "Clustering",
            "discovery-srv",
            types.DOMAIN,
            "",
            "Domain whose SRV records _etcd-server-ssl._tcp and _etcd-server._tcp stand for --initial-cluster. "
            "Read at the first start only.",
        ),
    ]
    discovery_srv_name: Annotated[
        str,
        Option(
            "Clustering",
            "discovery-srv-name",
            types.SRV_NAME,
            "",
            "Ends the service names of --discovery-srv, after a dash, so that one domain has several clusters.",
        ),
    ]
    strict_reconfig_check: Annotated[
        bool,
        Option(
            "Clustering",
            "strict-reconfig-check",
            types.BOOL,
            "true",
            "Refuse a change of the members that could leave the cluster without a majority.",
        ),
    ]
    pre_vote: Annotated[
        bool,
        Option(
            "Clustering",
            "pre-vote",
            types.BOOL,
            "true",
            "Ask others before standing for election, so that a member that was cut off does not disturb the leader.",
        ),
    ]
    initial_corrupt_check: Annotated[
        bool,
        Option(
            "Clustering",
            "experimental-initial-corrupt-check",
            types.BOOL,
            "false",
            "Compare the data with the other members' before serving anybody.",
        ),
    ]
    # 0 is off
    corrupt_check_time_s: Annotated[
        float,
        Option(
            "Clustering",
            "experimental-corrupt-check-time",
            types.DURATION,
            "0s",
            "Time between two comparisons of all members' data; 0 is never.",
            alias="corrupt-check-time",
        ),
    ]
    max_txn_ops: Annotated[
        int,
        Option(
            "Limits",
            "max-txn-ops",
            types.whole("N", "operations", 1, 2**31 - 1),
            "128",
            "Most operations in each list of a transaction.",
        ),
    ]
    max_request_bytes: Annotated[int, Option("Limits", "max-request-bytes", types.SIZE, "1572864", "Largest request.")]
    max_concurrent_streams: Annotated[
        int,
        Option(
            "Limits",
            "max-concurrent-streams",
            types.whole("N", "streams", 1, 2**32 - 1),
            "4294967295",
            "Most requests in progress on one HTTP/2 connection.",
        ),
    ]
    # not positive: no limit
    quota_backend_bytes: Annotated[
        int,
        Option(
            "Limits",
            "quota-backend-bytes",
            types.whole("BYTES", "bytes", -(2**63), 2**63 - 1),
            "0",
            "Database size from which writes are refused; 0 stands for 2 GiB, a negative number for no limit.",
        ),
    ]
    value_cache_bytes: Annotated[
        int,
        Option(
            "Limits",
            "value-cache-bytes",
            types.SIZE,
            "512MiB",
            "Memory for current values; others are read from the database.",
        ),
    ]
    enable_lease_checkpoint: Annotated[
        bool,
        Option(
            "Limits",
            "experimental-enable-lease-checkpoint",
            types.BOOL,
            "false",
            "Log every five minutes how long leases have left, so that a new leader does not start them anew.",
        ),
    ]
    auto_compaction_mode: Annotated[
        CompactionMode,
        Option(
            "Limits",
            "auto-compaction-mode",
            _COMPACTION_MODE,
            "periodic",
            "Whether --auto-compaction-retention is a time or a number of revisions.",
        ),
    ]
    # seconds, or revisions; 0 is off
    auto_compaction_retention: Annotated[
        float,
        Option(
            "Limits",
            "auto-compaction-retention",
            types.RETENTION,
            "0",
            "History that is kept: a duration or a bare number of hours, or a number of revisions; 0 keeps all.",
        ),
    ]
    grpc_keepalive_min_time_s: Annotated[
        float,
        Option(
            "Limits",
            "grpc-keepalive-min-time",
            types.DURATION,
            "5s",
            "Least time that a client must leave between two pings, in plaintext as with etcd; 0 is five minutes.",
        ),
    ]
    grpc_keepalive_interval_s: Annotated[
        float,
        Option(
            "Limits",
            "grpc-keepalive-interval",
            types.DURATION,
            "2h",
            "Silence of a client after which it is pinged; 0 is never.",
        ),
    ]
    grpc_keepalive_timeout_s: Annotated[
        float,
        Option(
            "Limits",
            "grpc-keepalive-timeout",
            types.DURATION,
            "20s",
            "Time that a client has to answer a ping before its connection is closed; 0: clients are not pinged.",
        ),
    ]
    allow_plaintext: Annotated[
        bool,
        Option(
            "Certificates",
            "allow-plaintext",
            types.BOOL,
            "false",
            "Accept http:// URLs, whose traffic anyone on the way can read and change.",
        ),
    ]
    cert_file: Annotated[
        str, Option("Certificates", "cert-file", types.PATH, "", "Certificate for the client URLs, in PEM.")
    ]
    key_file: Annotated[str, Option("Certificates", "key-file", types.PATH, "", "Private key of --cert-file, in PEM.")]
    trusted_ca_file: Annotated[
        str,
        Option(
            "Certificates",
            "trusted-ca-file",
            types.PATH,
            "",
            "Authorities of client certificates, in PEM; once set, no client gets in without such a certificate.",
        ),
    ]
    client_cert_auth: Annotated[
        bool,
        Option(
            "Certificates",
            "client-cert-auth",
            types.BOOL,
            "false",
            "Let no client in without a certificate from --trusted-ca-file; its CN is then the user name.",
        ),
    ]
    peer_cert_file: Annotated[
        str,
        Option("Certificates", "peer-cert-file", types.PATH, "", "Certificate for the peer URLs, in PEM."),
    ]
    peer_key_file: Annotated[
        str,
        Option("Certificates", "peer-key-file", types.PATH, "", "Private key of --peer-cert-file, in PEM."),
    ]
    peer_trusted_ca_file: Annotated[
        str,
        Option(
            "Certificates",
            "peer-trusted-ca-file",
            types.PATH,
            "",
            "Authorities of peer certificates, in PEM; once set, no peer gets in without such a certificate.",
        ),
    ]
    peer_client_cert_auth: Annotated[
        bool,
        Option(
            "Certificates",
            "peer-client-cert-auth",
            types.BOOL,
            "false",
            "Let no peer in without a certificate from --peer-trusted-ca-file.",
        ),
    ]
    peer_cert_allowed_cn: Annotated[
        str,
        Option(
            "Certificates",
            "peer-cert-allowed-cn",
            types.TEXT,
            "",
            "Common name that the certificate of every peer must have.",
        ),
    ]
    peer_cert_allowed_hostname: Annotated[
        str,
        Option(
            "Certificates",
            "peer-cert-allowed-hostname",
            types.TEXT,
            "",
            "Host name or address for which the certificate of every peer must be good.",
        ),
    ]
    # a LogLevel, whose constants have no static type
    log_level: Annotated[Any, Option("Monitoring", "log-level", _LOG_LEVEL, "info", "Least level of what is logged.")]
    metrics: Annotated[
        str,
        Option(
            "Monitoring",
            "metrics",
            types.choice({name: name for name in ("basic", EXTENSIVE)}),
            "basic",
            "Which metrics to show; with extensive also how long each call takes, which costs some of that time.",
        ),
    ]
    listen_metrics_urls: Annotated[
        tuple[Url, ...],
        Option(
            "Monitoring",
            "listen-metrics-urls",
            types.LISTEN_URLS,
            "",
            "Where else to serve /metrics, /health, /livez and /readyz, and only these, over HTTP/1.1; https:// has "
            "the certificates of the client URLs, http:// needs --allow-plaintext here too.",
        ),
    ]
    force_new_cluster: Annotated[
        bool,
        Option(
            "Unsafe",
            "force-new-cluster",
            types.BOOL,
            "false",
            "Remove all other members and go on alone with the data of this one, after a majority was lost for good.",
        ),
    ]
    unsafe_no_fsync: Annotated[
        bool,
        Option(
            "Unsafe",
            "unsafe-no-fsync",
            types.BOOL,
            "false",
            "Do not wait for the disk: a power cut loses acknowledged writes and may damage the log.",
        ),
    ]

    @property
    def makes_client_certificates(self) -> bool:
        """Whether clients are served with certificates that the member made for itself."""
        given = self.cert_file or self.key_file or self.trusted_ca_file or self.client_cert_auth
        return not given and any(url.secure for url in self.listen_client_urls + self.listen_metrics_urls)

    @property
    def makes_peer_certificates(self) -> bool:
        """Whether peers are served with certificates that the member made for itself."""
        given = self.peer_cert_file or self.peer_key_file or self.peer_trusted_ca_file or self.peer_client_cert_auth
        return not given and any(url.secure for url in self.listen_peer_urls)

    @property
    def has_others(self) -> bool:
        """Whether this member is told to be one of several."""
        joins = self.initial_cluster_state is ClusterState.EXISTING
        return joins or bool(self.discovery_srv) or len(self.initial_cluster) > 1

    @property
    def own_certificates_directory(self) -> Path:
        """Where those certificates are."""
        return self.data_dir / "pki"


OPTION_OF_FIELD: Mapping[str, Option] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Config, include_extras=True).items()
}
OPTIONS: Mapping[str, Option] = {option.flag: option for option in OPTION_OF_FIELD.values()}
