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
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

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

# Settings that only a file can hold; the engine's have variables of their own.
_TABLES = ("models", "engine", "backends", "routes")

# What parts the items of a list in the environment.
_LISTS = {"model_roots": os.pathsep, "web_origins": ","}

# Settings in seconds; the bound keeps infinity out, which no clock and no Duration can hold.
_MAX_SECONDS = 10 * 365 * 86400
Positive = Annotated[float, msgspec.Meta(gt=0, le=_MAX_SECONDS)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=_MAX_SECONDS)]


# What fits into a socket's address, with room to spare on every system.
_MAX_SOCKET_PATH_BYTES = 101

_Options = TypeVar("_Options", bound=msgspec.Struct)


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
    queue_prompt_tokens: Annotated[int, msgspec.Meta(ge=0)] = 1 << 17
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


class Secret:
    """A key. It shows itself to nobody who does not ask by name: not in a repr, a log line or a traceback."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "Secret(...)"

    def __bool__(self) -> bool:
        return bool(self._text)

    def reveal(self) -> str:
        """Returns the key, for the one header that carries it."""
        return self._text


class BackendSettings(_Frozen, frozen=True):
    """A remote backend. Times in seconds. `options` has the keys of the type's own `Options`.

    The key comes from the environment or a file, never from here. `idle_seconds` bounds the time without a byte,
    `progress_seconds` that without anything of use. `health_seconds` 0: nobody is asked how it is.
    """

    type: str
    display_name: str = ""
    base_url: str = ""
    api_key_env: str = ""
    api_key_file: str = ""
    ca_file: str = ""
    proxy: str = ""
    headers: dict[str, str] = {}
    query: dict[str, str] = {}
    models: list[str] = []
    default_model: str = ""
    allow_unlisted: bool = False
    connect_seconds: Positive = 5.0
    idle_seconds: Positive = 60.0
    progress_seconds: Positive = 180.0
    health_seconds: NotNegative = 30.0
    breaker_failures: Annotated[int, msgspec.Meta(ge=1)] = 5
    breaker_window_seconds: Positive = 10.0
    breaker_open_seconds: Positive = 15.0
    options: dict[str, Any] = {}

    def read_key(self, environment: Mapping[str, str] = os.environ) -> Secret:
        """Returns the key, empty when none is named. ConfigError names what is missing, and never what is there."""
        if self.api_key_env and self.api_key_file:
            raise ConfigError("set api_key_env or api_key_file, not both")
        if self.api_key_env:
            text = environment.get(self.api_key_env, "").strip()
            if not text:
                raise ConfigError(f"api_key_env: the environment has no {self.api_key_env}")
        elif self.api_key_file:
            try:
                text = pathlib.Path(self.api_key_file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"api_key_file: {self.api_key_file} cannot be read") from error
            if not text:
                raise ConfigError(f"api_key_file: {self.api_key_file} is empty")
        else:
            return Secret("")
        if not text.isascii() or not text.isprintable():
            raise ConfigError(
                f"{'api_key_env' if self.api_key_env else 'api_key_file'}: the key is no plain text"
            )
        return Secret(text)


class Candidate(_Frozen, frozen=True):
    """A model that a route may ask. Weights count where any candidate of the route has one."""

    model: str
    weight: Annotated[float, msgspec.Meta(gt=0)] | None = None


Cause = Literal["unreachable", "rate_limited", "context_too_long", "content_filter", "unsupported"]


class RouteSettings(_Frozen, frozen=True):
    """A name for one of several models. Times in seconds."""

    candidates: list[str | Candidate]
    fallback_on: tuple[Cause, ...] = ("unreachable", "rate_limited", "context_too_long", "unsupported")
    retries: Annotated[int, msgspec.Meta(ge=0, le=10)] = 2
    backoff_seconds: Positive = 0.2
    max_backoff_seconds: Positive = 5.0
    retry_budget: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    required: bool = False

    @property
    def models(self) -> tuple[Candidate, ...]:
        """The candidates, each as a table."""
        return tuple(Candidate(each) if isinstance(each, str) else each for each in self.candidates)


class Address(msgspec.Struct, frozen=True):
    """Where a port listens: HOST:PORT, or unix:PATH."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, key: str, text: str) -> Address:
        """Returns the address that a setting names. Raises ConfigError."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if path.startswith("/") and len(path.encode()) < _MAX_SOCKET_PATH_BYTES:
                return cls(path=path)
            raise ConfigError(f"{key} {text!r} is not unix:PATH with a full path of at most 100 bytes")
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ConfigError(f"{key} {text!r} is not HOST:PORT")
        return cls(host=host.strip("[]"), port=int(port))

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return bool(self.path) or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class Settings(_Frozen, frozen=True):
    """Everything the server is told. Files of certificates are PEM; an address that is empty is not listened on."""

    address: str = "127.0.0.1:50051"
    admin_address: str = ""
    probe_address: str = ""
    web_address: str = ""
    web_origins: list[str] = []
    insecure: bool = False
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    keys_file: str = ""
    max_concurrent: Annotated[int, msgspec.Meta(ge=1)] | None = None
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    reflection: bool | None = None
    models: dict[str, ModelSettings] = {}
    model_roots: list[str] = []
    default_model: str = ""
    scripted: bool = False
    lame_duck_seconds: NotNegative = 5.0
    drain_seconds: NotNegative = 25.0
    max_completion_seconds: Positive = 600.0
    write_stall_seconds: Positive = 30.0
    max_connection_age_seconds: NotNegative = 1800.0
    metrics_address: str = ""
    traces_endpoint: str = ""
    log_prompts: bool = False
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    engine: EngineSettings = EngineSettings()
    backends: dict[str, BackendSettings] = {}
    routes: dict[str, RouteSettings] = {}

    @property
    def serves_demo(self) -> bool:
        """Whether the demo model is served, for want of anything else."""
        return not (self.models or self.scripted or self.backends)

    @property
    def main(self) -> Address:
        """Where the main port listens."""
        return Address.parse("address", self.address)

    @property
    def admin(self) -> Address | None:
        """Where ModelService listens when it has a port of its own."""
        return self._place("admin_address")

    @property
    def metrics(self) -> Address | None:
        """Where /metrics and /healthz are served over HTTP."""
        return self._place("metrics_address")

    @property
    def probe(self) -> Address | None:
        """Where health is told in the clear, beside a main port that has TLS."""
        return self._place("probe_address")

    @property
    def web(self) -> Address | None:
        """Where Connect, gRPC-Web and JSON are spoken."""
        return self._place("web_address")

    def _place(self, key: str) -> Address | None:
        text = getattr(self, key)
        return Address.parse(key, text) if text else None

    @property
    def has_reflection(self) -> bool:
        """Whether reflection is served: as set, else on loopback only."""
        return self.main.is_local if self.reflection is None else self.reflection


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
    check_keys(values, Settings, "")
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
    """Reads INFERWIRE_<KEY>, and INFERWIRE_ENGINE_<KEY> for the engine's table."""
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
        plain = [field for field in Settings.__struct_fields__ if field not in _TABLES]
        if key not in plain:
            raise ConfigError(_unknown(name, [PREFIX + field.upper() for field in plain]))
        separator = _LISTS.get(key)
        values[key] = text.split(separator) if separator else text
    return values


def _merge(values: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = dict(value) if isinstance(value, Mapping) else value


def check_keys(values: Any, struct: type[msgspec.Struct], where: str) -> None:
    """Raises ConfigError for a key that no setting has, with the nearest one that is."""
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        path = f"{where}{key}"
        if key not in struct.__struct_fields__:
            raise ConfigError(_unknown(path, [where + field for field in struct.__struct_fields__]))
        if struct is Settings and key == "engine":
            check_keys(value, EngineSettings, "engine.")
        if struct is Settings and key in _NAMED_TABLES and isinstance(value, dict):
            for name, table in value.items():
                check_keys(table, _NAMED_TABLES[key], f"{key}.{name}.")


_NAMED_TABLES: dict[str, type[msgspec.Struct]] = {
    "models": ModelSettings,
    "backends": BackendSettings,
    "routes": RouteSettings,
}


def convert_options(options: Mapping[str, Any], struct: type[_Options], where: str) -> _Options:
    """Returns a backend's own options. ConfigError names the key that does not fit, with the nearest one that does."""
    check_keys(dict(options), struct, f"{where}.")
    try:
        return msgspec.convert(options, struct)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error).replace("`$", f"`{where}")) from error


def unknown_value(key: str, value: str, known: Iterable[str]) -> ConfigError:
    """Returns the error for a value that none of the known ones is, with the nearest."""
    known = sorted(known)
    near = difflib.get_close_matches(value, known, n=1)
    return ConfigError(
        f"{key}: {value!r} is not one of {', '.join(known)}" + (f"; did you mean {near[0]}?" if near else "")
    )


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "")


def _check(settings: Settings) -> None:
    _check_ports(settings)
    if settings.traces_endpoint and not re.fullmatch(r"https?://[^/]+/?", settings.traces_endpoint):
        raise ConfigError(
            f"traces_endpoint {settings.traces_endpoint!r} is not http://HOST:PORT or https://HOST:PORT"
        )
    for origin in settings.web_origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"web_origins: {origin!r} is no origin such as https://chat.example or http://localhost:5173, "
                "in lower case and without a path"
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
    _check_names(settings)
    for root in settings.model_roots:
        if not pathlib.Path(root).is_dir():
            raise ConfigError(f"model_roots: {root} is not a directory")


def _check_ports(settings: Settings) -> None:
    """Checks that nothing is in the clear, or open to others, by accident."""
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise ConfigError("tls_certificate and tls_key go together: set both or none")
    if settings.tls_client_ca and not settings.tls_certificate:
        raise ConfigError(
            "tls_client_ca asks callers for certificates, which needs tls_certificate and tls_key too"
        )
    ports = {"address": settings.main, "admin_address": settings.admin, "web_address": settings.web}
    for key, address in ports.items():
        if address is None or address.is_local or settings.insecure or settings.tls_certificate:
            continue
        raise ConfigError(
            f"{key} {str(address)!r} can be reached from other machines, and the traffic would be in the clear; "
            "set tls_certificate and tls_key, say insecure (--insecure) if that is meant, or bind to 127.0.0.1"
        )
    for key, address in {"metrics_address": settings.metrics, "web_address": settings.web}.items():
        if address is not None and address.path:
            raise ConfigError(f"{key} {str(address)!r} is not HOST:PORT")
    # Probes are told nothing but names and SERVING or not, scrapers names and numbers: they may be in the clear.
    places = (*ports.values(), settings.probe, settings.metrics)
    addresses = [each for each in places if each and (each.port or each.path)]
    if len(set(addresses)) < len(addresses):
        raise ConfigError(
            "address, admin_address, web_address, probe_address and metrics_address must differ"
        )


# As browsers write them in the header; a page of a file says "null".
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\sA-Z,*]+|null")


def _check_names(settings: Settings) -> None:
    """Checks that backends and routes have names of their own, and that every candidate is one that may be there."""
    for id in settings.backends:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", id) or id in _RESERVED_IDS:
            raise ConfigError(
                f"backends.{id}: a backend's id has 1 to 64 of the characters a-z A-Z 0-9 _ - . "
                f"and is none of {', '.join(_RESERVED_IDS)}"
            )
    for name, route in settings.routes.items():
        where = f"routes.{name}"
        if not re.fullmatch(r"[A-Za-z0-9_.:/-]{1,128}", name):
            raise ConfigError(f"{where}: a route's name has 1 to 128 of the characters a-z A-Z 0-9 _ - . : /")
        if name in settings.models:
            raise ConfigError(f"{where}: a model has this name already")
        if not route.models:
            raise ConfigError(f"{where}.candidates: at least one")
        for candidate in route.models:
            _check_candidate(settings, where, candidate.model)


def _check_candidate(settings: Settings, where: str, model: str) -> None:
    if model in settings.routes:
        raise ConfigError(
            f"{where}.candidates: {model} is a route itself; name models, so that no route can lead back to itself"
        )
    id, slash, name = model.partition("/")
    backend = settings.backends.get(id)
    if slash and backend is not None:
        if not name or not (backend.allow_unlisted or name in backend.models):
            known = [f"{id}/{each}" for each in backend.models]
            raise unknown_value(f"{where}.candidates", model, known)
        return
    if model in settings.models or (model == DEMO_MODEL and settings.serves_demo):
        return
    if model == "scripted" and settings.scripted:
        return
    known = [
        *settings.models,
        *(f"{id}/{each}" for id, table in settings.backends.items() for each in table.models),
    ]
    raise unknown_value(f"{where}.candidates", model, known)


# What `started.backend` tells of answers that no configured backend gave.
_RESERVED_IDS = ("local", "scripted", "route")
