"""The server's settings: frozen values, read once from a file, the environment and flags, in that order of rank.

The only reader of the environment and of the configuration file. An unknown key is an error that names it.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import pathlib
import re
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from google.protobuf import json_format

from inferwire.v1 import models_pb2
from inferwire_server import errors, validation

PREFIX = "INFERWIRE_"
DEFAULT_FILE = "inferwire.toml"
DEMO_MODEL = "demo"
# Kubernetes adds such variables for each service whose name is "inferwire" or begins so; they are not ours.
_SERVICE_VARIABLE = re.compile(
    r"INFERWIRE_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
# Read by the command line's clients, not by the server.
_CLIENT_VARIABLES = {"INFERWIRE_TOKEN"}

# Settings in seconds; the bound keeps infinity out, which no clock and no Duration can hold.
_MAX_SECONDS = 10 * 365 * 86400
Positive = Annotated[float, msgspec.Meta(gt=0, le=_MAX_SECONDS)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=_MAX_SECONDS)]


class ConfigError(Exception):
    """The configuration cannot be used; the message says which key and why."""


class _Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class EngineSettings(_Frozen, frozen=True):
    """How engine processes work. Times in seconds, sizes in bytes."""

    max_decode_step_seconds: Positive = 0.25
    max_prefill_step_seconds: Positive = 1.0
    max_gather_tokens: Annotated[int, msgspec.Meta(ge=0)] = 4096
    queue_capacity: Annotated[int, msgspec.Meta(ge=0)] = 64
    max_prompt_bytes: Annotated[int, msgspec.Meta(ge=1)] = 4 << 20
    stall_seconds: Positive = 30.0
    load_stall_seconds: Positive = 60.0
    max_restarts: Annotated[int, msgspec.Meta(ge=0)] = 3
    restart_window_seconds: Positive = 300.0


class ModelSettings(_Frozen, frozen=True):
    """A model that the operator names. `config` has the keys of the contract's LoadConfig."""

    path: str
    config: dict[str, Any] = {}
    load: bool = True
    required: bool = True
    pinned: bool = False
    keep_alive_seconds: Positive | None = None

    def load_config(self) -> models_pb2.LoadConfig:
        """Returns `config` as the contract's message. ConfigError names the key that does not fit."""
        try:
            return json_format.ParseDict(self.config, models_pb2.LoadConfig())
        except json_format.ParseError as error:
            raise ConfigError(f"config of the model at {self.path}: {error}") from error


class Settings(_Frozen, frozen=True):
    """Everything the server is told."""

    address: str = "127.0.0.1:50051"
    insecure: bool = False
    reflection: bool | None = None
    models: dict[str, ModelSettings] = {}
    model_roots: list[str] = []
    default_model: str = ""
    scripted: bool = False
    lame_duck_seconds: NotNegative = 5.0
    drain_seconds: NotNegative = 25.0
    max_completion_seconds: Positive = 600.0
    write_stall_seconds: Positive = 30.0
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    engine: EngineSettings = EngineSettings()

    @property
    def host(self) -> str:
        """The host part of the address."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port part of the address."""
        return int(self.address.rpartition(":")[2])

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def has_reflection(self) -> bool:
        """Whether reflection is served: as set, else on loopback only."""
        return self.is_loopback if self.reflection is None else self.reflection


def load(
    file: pathlib.Path | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Returns the settings. `file` None: `inferwire.toml` here, if there is one. ConfigError says what is wrong.

    A flag outranks the environment, which outranks the file. Tables merge key by key.
    """
    values = _read_file(file)
    _merge(values, _read_environment(environment))
    _merge(values, {key: value for key, value in (flags or {}).items() if value is not None})
    _check_keys(values, Settings, "")
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error).replace("`$.", "`").replace("`$`", "the configuration")) from error
    _check(settings)
    return settings


def _read_file(file: pathlib.Path | None) -> dict[str, Any]:
    path = file or pathlib.Path(DEFAULT_FILE)
    if file is None and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Reads INFERWIRE_<KEY>, and INFERWIRE_ENGINE_<KEY> for the engine's table; a list is split at colons."""
    values: dict[str, Any] = {}
    for name, text in environment.items():
        if not name.startswith(PREFIX) or _SERVICE_VARIABLE.fullmatch(name) or name in _CLIENT_VARIABLES:
            continue
        key = name.removeprefix(PREFIX).lower()
        if key == "config":
            continue
        if key.startswith("engine_"):
            key = key.removeprefix("engine_")
            if key not in EngineSettings.__struct_fields__:
                raise ConfigError(
                    _unknown(name, [f"{PREFIX}ENGINE_{f.upper()}" for f in EngineSettings.__struct_fields__])
                )
            values.setdefault("engine", {})[key] = text
            continue
        plain = [field for field in Settings.__struct_fields__ if field not in ("models", "engine")]
        if key not in plain:
            raise ConfigError(_unknown(name, [PREFIX + field.upper() for field in plain]))
        values[key] = text.split(os.pathsep) if key == "model_roots" else text
    return values


def _merge(values: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = dict(value) if isinstance(value, Mapping) else value


def _check_keys(values: Any, struct: type[msgspec.Struct], where: str) -> None:
    """Raises ConfigError for a key that no setting has, with the nearest one that is."""
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        path = f"{where}{key}"
        if key not in struct.__struct_fields__:
            raise ConfigError(_unknown(path, [where + field for field in struct.__struct_fields__]))
        if struct is Settings and key == "engine":
            _check_keys(value, EngineSettings, "engine.")
        if struct is Settings and key == "models" and isinstance(value, dict):
            for name, model in value.items():
                _check_keys(model, ModelSettings, f"models.{name}.")


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "")


def _check(settings: Settings) -> None:
    host, _, port = settings.address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"address {settings.address!r} is not HOST:PORT")
    if not (settings.is_loopback or settings.insecure):
        raise ConfigError(
            f"address {settings.address!r} can be reached from other machines, and the traffic would be in the clear; "
            "say insecure (--insecure) if that is meant, or bind to 127.0.0.1"
        )
    for name, model in settings.models.items():
        if not re.fullmatch(r"[A-Za-z0-9_.:/-]{1,128}", name):
            raise ConfigError(
                f"models.{name}: a model's name has 1 to 128 of the characters a-z A-Z 0-9 _ - . : /"
            )
        try:
            validation.load_request(models_pb2.LoadRequest(model=name, config=model.load_config()))
        except errors.InvalidRequest as error:
            raise ConfigError(f"models.{name}.{error.message}") from error
    for root in settings.model_roots:
        if not pathlib.Path(root).is_dir():
            raise ConfigError(f"model_roots: {root} is not a directory")
