"""From what was typed to a checked :class:`Config`.

Unlike etcd, a value from a stronger source silently wins over a weaker one, the file does not switch the other sources
off, and no URL is plaintext unless ``--allow-plaintext`` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from twistedkv import optiontypes as types
from twistedkv.config import OPTION_OF_FIELD, OPTIONS, CompactionMode, Config
from twistedkv.configsources import ConfigError, Setting, gather, one_line
from twistedkv.optiontypes import InitialCluster, Url

DEFAULT_QUOTA_BYTES = 2 << 30  # etcd server/storage/quota.go: DefaultQuotaBytes

SourceOf = Callable[[str], str]  # flag to the words for where its value came from


def load_config(flags: Mapping[str, str], environment: Mapping[str, str]) -> Config:
    """The configuration that ``flags``, ``environment`` and the file they name amount to.

    Args:
        flags: texts by flag without its dashes.
        environment: all variables of the process.

    Raises:
        ConfigError: a name or a value is wrong.
    """
    return _resolve(gather(OPTIONS, flags, environment))


def _resolve(settings: Mapping[str, Setting]) -> Config:
    """Read every value, fill in what other options decide, and check the whole."""
    values: dict[str, Any] = {}
    for name, option in OPTION_OF_FIELD.items():
        setting = settings.get(option.flag)
        # An option that other options decide has an empty default: an empty value asks for that as well.
        text = setting.text if setting is not None and (setting.text or not option.default_note) else option.default
        try:
            values[name] = option.kind.parse(text)
        except ValueError as error:
            source = setting.source if setting is not None else f"--{option.flag}"
            raise _bad_value(source, text, option.kind.expected, str(error)) from error

    def source_of(flag: str) -> str:
        return settings[flag].source if flag in settings else f"--{flag}"

    values["data_dir"] = Path(values["data_dir"] or f"{values['name']}.twistedkv")
    values["storage"] = values["storage"] or f"sqlite:///{values['data_dir']}/twistedkv.db"
    values["quota_backend_bytes"] = values["quota_backend_bytes"] or DEFAULT_QUOTA_BYTES
    values["advertise_client_urls"] = values["advertise_client_urls"] or values["listen_client_urls"]
    values["initial_advertise_peer_urls"] = values["initial_advertise_peer_urls"] or values["listen_peer_urls"]
    if not values["initial_cluster"] and not values["discovery_srv"]:
        values["initial_cluster"] = InitialCluster({values["name"]: values["initial_advertise_peer_urls"]})
    mode, retention = values["auto_compaction_mode"], values["auto_compaction_retention"]
    try:
        values["auto_compaction_retention"] = types.retention(retention, periodic=mode is CompactionMode.PERIODIC)
    except ValueError as error:
        expected = types.expected_retention(periodic=mode is CompactionMode.PERIODIC)
        raise _bad_value(source_of("auto-compaction-retention"), retention, expected) from error
    config = Config(**values)
    for name, option in OPTION_OF_FIELD.items():
        _check_urls(config, option.flag, getattr(config, name), source_of)
    _check_times(config, source_of)
    _check_cluster(config, source_of)
    _check_certificates(config, source_of)
    return config


def _check_urls(config: Config, flag: str, value: object, source_of: SourceOf) -> None:
    urls: Iterable[object] = ()
    if isinstance(value, InitialCluster):
        urls = (url for many in value.values() for url in many)
    elif isinstance(value, tuple):
        urls = value
    if flag in ("listen-client-urls", "listen-peer-urls") and not value:
        raise _bad_value(source_of(flag), "", "at least one URL such as https://127.0.0.1:2379")
    for url in urls:
        if isinstance(url, Url) and not url.secure and not config.allow_plaintext:
            expected = f"{url._replace(scheme='https')}, or --allow-plaintext for traffic that anyone can read"
            raise _bad_value(source_of(flag), str(url), expected)


def _check_times(config: Config, source_of: SourceOf) -> None:
    least = 5 * config.heartbeat_interval_ms  # etcd server/embed/config.go, Validate
    if config.election_timeout_ms < least:
        expected = f"at least {least}, five times the heartbeat interval of {config.heartbeat_interval_ms}"
        raise _bad_value(source_of("election-timeout"), str(config.election_timeout_ms), expected)


def _check_cluster(config: Config, source_of: SourceOf) -> None:
    """What the options say of the cluster by themselves; the rest counts at the first start only, see
    :mod:`twistedkv.bootstrap`.

    Source: etcd ``server/embed/config.go``, ErrConflictBootstrapFlags.
    """
    if config.discovery_srv and config.initial_cluster:
        expected = "only one of --initial-cluster and --discovery-srv"
        raise _bad_value(source_of("discovery-srv"), config.discovery_srv, expected)
    if config.discovery_srv_name and not config.discovery_srv:
        raise _bad_value(source_of("discovery-srv-name"), config.discovery_srv_name, "--discovery-srv with it")


def _check_certificates(config: Config, source_of: SourceOf) -> None:
    """etcd ``client/pkg/transport/listener.go``: a pair is whole, and https needs one."""
    sides = (
        ("", config.cert_file, config.key_file, config.trusted_ca_file, config.client_cert_auth),
        (
            "peer-",
            config.peer_cert_file,
            config.peer_key_file,
            config.peer_trusted_ca_file,
            config.peer_client_cert_auth,
        ),
    )
    for prefix, certificate, key, authorities, required in sides:
        if bool(certificate) != bool(key):
            given, missing = ("cert-file", "key-file") if certificate else ("key-file", "cert-file")
            raise _bad_value(source_of(prefix + given), certificate or key, f"--{prefix}{missing} with it")
        if required and not authorities:
            raise _bad_value(source_of(f"{prefix}client-cert-auth"), "true", f"--{prefix}trusted-ca-file with it")
        if authorities and not certificate:
            expected = f"--{prefix}cert-file and --{prefix}key-file with it"
            raise _bad_value(source_of(f"{prefix}trusted-ca-file"), authorities, expected)
    _check_peer_names(config, source_of)


def _check_peer_names(config: Config, source_of: SourceOf) -> None:
    """etcd ``client/pkg/transport/listener.go``: one of the two; here also that they keep anybody out."""
    name, host = config.peer_cert_allowed_cn, config.peer_cert_allowed_hostname
    if name and host:
        expected = "only one of --peer-cert-allowed-cn and --peer-cert-allowed-hostname"
        raise _bad_value(source_of("peer-cert-allowed-hostname"), host, expected)
    for flag, text in (("peer-cert-allowed-cn", name), ("peer-cert-allowed-hostname", host)):
        plain = next((url for url in config.listen_peer_urls if not url.secure), None)
        if text and plain is not None:
            raise _bad_value(source_of(flag), text, f"{plain._replace(scheme='https')} in --listen-peer-urls with it")
        if text and not config.peer_trusted_ca_file and not config.makes_peer_certificates:
            raise _bad_value(source_of(flag), text, "--peer-trusted-ca-file with it")


def _bad_value(source: str, text: str, expected: str, reason: str = "") -> ConfigError:
    because = f", {reason}" if reason else ""
    return ConfigError(one_line(f"{source} is {text!r}{because}: expected {expected}"))
