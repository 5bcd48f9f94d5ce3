"""Who may call what: keys and certificates become principals, and each RPC needs a scope.

Keys are stored as SHA-256, so the file gives nobody a key. It is read again when it changes; what cannot be read leaves the old
keys in force. Nothing of a credential reaches a log, and a caller is not told which part of it was wrong.
"""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
import hashlib
import pathlib
import re
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, get_args

import msgspec
import structlog

from inferwire_server import errors
from inferwire_server.config import ConfigError, Positive, Settings, check_keys
from inferwire_server.watched import WatchedFiles

log = structlog.get_logger()

Scope = Literal["infer", "admin", "health"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_ANY = frozenset(SCOPES)

#: By RPC, the scopes of which a principal needs one; none: anybody may call. A test holds it against all that is served.
NEEDED: Mapping[str, frozenset[Scope]] = {
    "inferwire.v1.InferenceService/Complete": frozenset({"infer"}),
    "inferwire.v1.InferenceService/StreamComplete": frozenset({"infer"}),
    "inferwire.v1.InferenceService/Embed": frozenset({"infer"}),
    "inferwire.v1.InferenceService/CountTokens": frozenset({"infer"}),
    "inferwire.v1.InferenceService/Tokenize": frozenset({"infer"}),
    "inferwire.v1.InferenceService/Detokenize": frozenset({"infer"}),
    "inferwire.v1.InferenceService/ListModels": _ANY,
    "inferwire.v1.InferenceService/GetModel": _ANY,
    "inferwire.v1.InferenceService/WatchModels": _ANY,
    "inferwire.v1.InferenceService/ListBackends": _ANY,
    "inferwire.v1.InferenceService/Health": _ANY,
    "inferwire.v1.ModelService/Load": frozenset({"admin"}),
    "inferwire.v1.ModelService/StreamLoad": frozenset({"admin"}),
    "inferwire.v1.ModelService/Unload": frozenset({"admin"}),
    # A kubelet and a client that balances by health have no key. What they may ask for without one, health.py says.
    "grpc.health.v1.Health/Check": frozenset(),
    "grpc.health.v1.Health/Watch": frozenset(),
    "grpc.health.v1.Health/List": _ANY,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _ANY,
}

AUTHORIZATION_KEY = "authorization"
_KEY_PREFIX = "iw_"


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much a principal may ask for; None: no limit. Tokens are those of prompts and answers together."""

    max_concurrent: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


@dataclasses.dataclass(frozen=True)
class Principal:
    """Somebody who calls. `models` are patterns such as "openai/*"."""

    name: str
    scopes: frozenset[Scope] = _ANY
    models: tuple[str, ...] = ("*",)
    limits: Limits = Limits()

    def may_use(self, model: str) -> bool:
        """Whether the model is one of this principal's; one that is not does not exist for it."""
        return any(pattern == "*" or fnmatch.fnmatchcase(model, pattern) for pattern in self.models)


NOBODY = Principal("nobody", scopes=frozenset())


class _Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    scopes: Annotated[list[Scope], msgspec.Meta(min_length=1)]
    models: tuple[str, ...] = ("*",)
    # The first day, in UTC, on which it no longer holds.
    expires: datetime.date | None = None
    max_concurrent: Annotated[int, msgspec.Meta(ge=1)] | None = None
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None

    def is_expired(self) -> bool:
        return self.expires is not None and datetime.datetime.now(datetime.UTC).date() >= self.expires

    def principal(self, name: str, defaults: Limits) -> Principal:
        return Principal(
            name,
            frozenset(self.scopes),
            self.models,
            Limits(
                self.max_concurrent or defaults.max_concurrent,
                self.requests_per_minute or defaults.requests_per_minute,
                self.tokens_per_minute or defaults.tokens_per_minute,
            ),
        )


class KeyGrant(_Grant, frozen=True):
    """A table `[keys.NAME]`. `sha256` is the hash of the key in hex; several while one replaces another."""

    sha256: str | list[str]

    @property
    def hashes(self) -> list[str]:
        """The hashes in lower case."""
        return [each.lower() for each in ([self.sha256] if isinstance(self.sha256, str) else self.sha256)]


class CertificateGrant(_Grant, frozen=True):
    """A table `[certificates.NAME]`. `names` are subject alternative names or common names of callers' certificates."""

    names: Annotated[list[str], msgspec.Meta(min_length=1)]


class KeysFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    keys: dict[str, KeyGrant] = {}
    certificates: dict[str, CertificateGrant] = {}


class Access:
    """The principals, and what each may call."""

    def __init__(
        self, file: pathlib.Path | None = None, *, defaults: Limits | None = None, is_mutual: bool = False
    ) -> None:
        """Without a file everybody may call everything. Raises ConfigError."""
        self._file = file
        self._defaults = defaults or Limits()
        self._is_mutual = is_mutual
        self._watched = WatchedFiles([file] if file else [])
        self._by_hash: dict[str, tuple[str, KeyGrant]] = {}
        self._by_certificate: dict[str, tuple[str, CertificateGrant]] = {}
        if file is not None:
            self._take(_read(file))

    def __repr__(self) -> str:
        if self._file is None:
            return f"<Access [{'any certificate' if self._is_mutual else 'open'}]>"
        return f"<Access [keys {len(self._by_hash)} | certificates {len(self._by_certificate)}]>"

    @classmethod
    def of(cls, settings: Settings) -> Access:
        """Returns what the settings say. Raises ConfigError."""
        return cls(
            pathlib.Path(settings.keys_file) if settings.keys_file else None,
            defaults=Limits(
                settings.max_concurrent, settings.requests_per_minute, settings.tokens_per_minute
            ),
            is_mutual=bool(settings.tls_client_ca),
        )

    @property
    def is_open(self) -> bool:
        """Whether nobody needs a credential."""
        return self._file is None and not self._is_mutual

    def refresh(self) -> None:
        """Takes over what the file says now, if it changed and can be read."""
        if self._file is None or not self._watched.changed():
            return
        try:
            self._take(_read(self._file))
        except ConfigError as error:
            log.warning("keys_not_taken", reason=str(error))
        else:
            log.info("keys_taken", keys=len(self._by_hash), certificates=len(self._by_certificate))

    def identify(self, metadata: Mapping[str, str | bytes], certificate: Sequence[str] = ()) -> Principal:
        """Returns who calls; NOBODY without credentials. `certificate`: the names in the verified certificate.

        A key outranks a certificate. Raises errors.TokenInvalid.
        """
        if self.is_open:
            return Principal("anonymous", limits=self._defaults)
        if self._file is None:
            name = next(iter(certificate), "")
            return Principal(name, limits=self._defaults) if name else NOBODY
        value = metadata.get(AUTHORIZATION_KEY)
        if value is not None:
            name, grant = self._by_hash.get(_hash(value), ("", None))
            if grant is None or grant.is_expired():
                raise errors.TokenInvalid("the key is not valid")
            return grant.principal(name, self._defaults)
        for each in certificate:
            owner, its_grant = self._by_certificate.get(each, ("", None))
            if its_grant is not None and not its_grant.is_expired():
                return its_grant.principal(owner, self._defaults)
        if certificate:
            raise errors.TokenInvalid("the certificate is nobody's who may call")
        return NOBODY

    @staticmethod
    def check(principal: Principal, method: str) -> None:
        """Raises errors.TokenMissing or ScopeRequired when a principal may not call `method`, "package.Service/Method"."""
        needed = NEEDED.get(method)
        if needed is not None and (not needed or needed & principal.scopes):
            return
        if principal is NOBODY:
            raise errors.TokenMissing("send a key: metadata authorization, 'Bearer <key>'")
        raise errors.ScopeRequired(
            "the key does not allow this call", metadata={"scope": min(needed or {"none"})}
        )

    def _take(self, read: KeysFile) -> None:
        # Looked up by hash: how long that takes tells of the hash alone, and the key behind a hash cannot be found by it.
        self._by_hash = {each: (name, grant) for name, grant in read.keys.items() for each in grant.hashes}
        self._by_certificate = {
            each: (name, grant) for name, grant in read.certificates.items() for each in grant.names
        }


def new_key() -> tuple[str, str]:
    """Returns a key of 256 random bits, and the hash that is stored of it."""
    key = _KEY_PREFIX + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def _hash(value: str | bytes) -> str:
    """Returns the hash of the key in an authorization header; of nobody's key when there is none in it."""
    text = value if isinstance(value, str) else ""
    scheme, _, key = text.partition(" ")
    return (
        hashlib.sha256(key.strip().encode("utf-8", "replace")).hexdigest()
        if scheme.lower() == "bearer"
        else ""
    )


def _read(file: pathlib.Path) -> KeysFile:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"keys_file: {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"keys_file: {file}: {error}") from error
    check_keys(values, KeysFile, "")
    for table, struct in (("keys", KeyGrant), ("certificates", CertificateGrant)):
        tables = values.get(table)
        for name, grant in (tables if isinstance(tables, dict) else {}).items():
            check_keys(grant, struct, f"{table}.{name}.")
    try:
        read = msgspec.convert(values, KeysFile)
    except msgspec.ValidationError as error:
        raise ConfigError(f"keys_file: {file}: {error}") from error
    _check(read, file)
    return read


def _check(read: KeysFile, file: pathlib.Path) -> None:
    hashes: list[str] = []
    for name, grant in read.keys.items():
        for each in grant.hashes:
            if not re.fullmatch(r"[0-9a-f]{64}", each):
                raise ConfigError(
                    f"keys_file: {file}: keys.{name}.sha256 is not 64 hex digits; `inferwire key {name}` makes one"
                )
        hashes += grant.hashes
    names = [each for grant in read.certificates.values() for each in grant.names]
    if len(set(hashes)) < len(hashes) or len(set(names)) < len(names):
        raise ConfigError(f"keys_file: {file}: two principals share a key or a certificate's name")
