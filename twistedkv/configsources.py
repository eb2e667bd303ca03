"""Where options come from: flags, environment and file, all brought to one text by option.

A stronger source wins over a weaker one: flag, then environment, then file. What the texts mean is not known here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

from twisted.logger import Logger

from twistedkv.optiontypes import BOOL, Kind

ENVIRONMENT_PREFIX = "TWISTEDKV_"
FILE_FLAGS = ("config-file", "config")  # the first is etcd's

_log = Logger()


class ConfigError(Exception):
    """A configuration that cannot be used; its text is one line that says where, what, and what would be right."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option as every source sees it."""

    section: str
    flag: str
    kind: Kind[Any]
    default: str  # read by the kind, like any other value
    help: str
    default_note: str = ""  # shown for a default that other options decide; then ``default`` is empty
    alias: str = ""  # the flag of a later release of etcd

    @property
    def names(self) -> tuple[str, ...]:
        """What the flag can be called."""
        return (self.flag, self.alias) if self.alias else (self.flag,)


class Setting(NamedTuple):
    """One value as it was given."""

    text: str
    source: str  # as the operator knows it: "--name", "TWISTEDKV_NAME", "name in node.toml"


Options = Mapping[str, Option]  # by flag


def variable_of(flag: str) -> str:
    """The environment's name for a flag."""
    return ENVIRONMENT_PREFIX + flag.upper().replace("-", "_")


def gather(options: Options, flags: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, Setting]:
    """The strongest setting of each option that has any.

    Args:
        flags: texts by flag, as :func:`parse_flags` gives them.
        environment: all variables of the process; one with our prefix that names no option is warned about, as etcd
            does with its own.

    Raises:
        ConfigError: the file cannot be read or has a key that is no option.
    """
    # etcd pkg/flags/flag.go: an empty variable is an unset one.
    ours = {name: text for name, text in environment.items() if name.startswith(ENVIRONMENT_PREFIX) and text}
    names = _by_name(options)
    file_name = next((flags[flag] for flag in FILE_FLAGS if flag in flags), "") or next(
        (ours[variable_of(flag)] for flag in FILE_FLAGS if variable_of(flag) in ours), ""
    )
    variables = {name: ours[variable_of(name)] for name in names if variable_of(name) in ours}
    settings: dict[str, Setting] = {}
    if file_name:
        _take(settings, names, _read_file(names, file_name), lambda name: f"{name} in {file_name}")
    _take(settings, names, variables, variable_of)
    _take(settings, names, {flag: text for flag, text in flags.items() if flag in names}, "--{}".format)
    for variable in sorted(ours.keys() - {variable_of(name) for name in (*names, *FILE_FLAGS)}):
        _log.warn("unrecognized environment variable {variable}", variable=variable)
    return settings


def parse_flags(options: Options, arguments: Sequence[str]) -> dict[str, str]:
    """Texts by flag name, without dashes; a flag that comes twice has its last value.

    Flags read as in Go's ``flag`` package: one dash or two, ``--flag=value`` or ``--flag value``, and a boolean alone
    is true.

    Raises:
        ConfigError: a flag is unknown or lacks its value, or an argument is no flag.
    """
    flags: dict[str, str] = {}
    names = _by_name(options)
    left = iter(arguments)
    for argument in left:
        if not argument.startswith("-") or not argument.strip("-"):
            raise ConfigError(f"unexpected argument {argument!r}: expected an option, such as --name=a")
        dashes = 2 if argument.startswith("--") else 1
        flag, equals, text = argument[dashes:].partition("=")
        if flag not in names and flag not in FILE_FLAGS:
            raise ConfigError(f"unknown option {argument[: dashes + len(flag)]}{_nearest(names, flag, '--')}")
        if not equals:
            if flag in names and names[flag].kind is BOOL:
                text = "true"
            else:
                value = next(left, None)
                if value is None:
                    metavar = names[flag].kind.metavar if flag in names else "PATH"
                    raise ConfigError(f"--{flag} has no value: expected --{flag} {metavar}")
                text = value
        flags[flag] = text
    return flags


def _by_name(options: Options) -> dict[str, Option]:
    return {name: option for option in options.values() for name in option.names}


def _take(
    settings: dict[str, Setting], names: Options, texts: Mapping[str, str], source_of: Callable[[str], str]
) -> None:
    """Have the texts of one source take the place of those of weaker ones."""
    taken: dict[str, str] = {}
    for name, text in texts.items():
        flag = names[name].flag
        if flag in taken:
            raise ConfigError(f"{source_of(taken[flag])} and {source_of(name)} are one option: expected one of them")
        taken[flag] = name
        settings[flag] = Setting(text, source_of(name))


def _read_file(names: Options, file_name: str) -> dict[str, str]:
    try:
        with open(file_name, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {file_name}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {file_name} is not TOML: {one_line(error)}") from error
    texts = {}
    for key, value in document.items():
        if key not in names:
            raise ConfigError(f"unknown key {key!r} in {file_name}{_nearest(names, key, '')}")
        texts[key] = _text_of(names[key], value, file_name)
    return texts


def _text_of(option: Option, value: object, name: str) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int():
            return str(value)
        case list() if all(isinstance(item, str) for item in value):
            return ",".join(value)
    what = f"{option.flag} in {name} is a {type(value).__name__}"
    raise ConfigError(f"{what}: expected {option.kind.expected}")


def _nearest(options: Options, name: str, dashes: str) -> str:
    nearest = get_close_matches(name, options, n=1)
    return f": did you mean {dashes}{nearest[0]}?" if nearest else ""


def one_line(text: object) -> str:
    """The text with every run of white space made one space."""
    return " ".join(str(text).split())
