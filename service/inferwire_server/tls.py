"""The certificates of the ports: read, checked, and read again when the files change. Owns nothing but them.

A new pair replaces the old one only when it is whole, belongs together and is valid now: a half-written file or an expired
certificate is told once in the log, and the pair that works stays. Running calls never notice.
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import ssl

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from inferwire_server.config import ConfigError, Settings
from inferwire_server.watched import WatchedFiles

log = structlog.get_logger()


@dataclasses.dataclass(frozen=True)
class Material:
    """What the ports show and trust, in PEM. `client_ca` None: callers need no certificate."""

    key: bytes = dataclasses.field(repr=False)
    certificate: bytes
    client_ca: bytes | None
    expires: datetime.datetime


class Certificates:
    """The material in force."""

    def __init__(self, certificate: pathlib.Path, key: pathlib.Path, client_ca: pathlib.Path | None) -> None:
        """Raises ConfigError when there is nothing to begin with."""
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._files = WatchedFiles([certificate, key, *([client_ca] if client_ca else [])])
        self._material = self._read()
        self._ssl_context = self._new_ssl_context()
        self._handed_out: list[Material] = []

    def __repr__(self) -> str:
        mutual = " | of callers too" if self._client_ca else ""
        return f"<Certificates [until {self._material.expires:%Y-%m-%d %H:%M}{mutual}]>"

    @classmethod
    def of(cls, settings: Settings) -> Certificates | None:
        """Returns the certificates that the settings name; None when the ports speak in the clear."""
        if not settings.tls_certificate:
            return None
        client_ca = pathlib.Path(settings.tls_client_ca) if settings.tls_client_ca else None
        return cls(pathlib.Path(settings.tls_certificate), pathlib.Path(settings.tls_key), client_ca)

    @property
    def is_mutual(self) -> bool:
        """Whether callers must show a certificate."""
        return self._client_ca is not None

    def refresh(self) -> None:
        """Takes over what the files say now, if they changed and it can be used."""
        if not self._files.changed():
            return
        try:
            material = self._read()
            context = self._new_ssl_context()
        except ConfigError as error:
            log.warning("certificates_not_taken", reason=str(error))
            return
        if material != self._material:
            self._material, self._ssl_context = material, context
            log.info("certificates_taken", expires=material.expires.isoformat())

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Returns credentials that ask at each handshake what is in force. Each port needs its own."""
        told = self._material

        def changed() -> grpc.ServerCertificateConfiguration | None:
            # In a thread of gRPC's: reads one reference, and None says that the last answer still holds.
            nonlocal told
            now = self._material
            if now is told:
                return None
            told = now
            return _grpc_configuration(now)

        return grpc.dynamic_ssl_server_credentials(
            _grpc_configuration(told),
            changed,  # type: ignore[arg-type]  # None is documented: nothing changed
            require_client_authentication=self.is_mutual,
        )

    def ssl_context(self) -> ssl.SSLContext:
        """Returns a context for servers that are not gRPC's; it asks at each handshake, too."""

        def switch(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            connection.context = self._ssl_context

        front = self._new_ssl_context()
        front.sni_callback = switch
        return front

    def _read(self) -> Material:
        key, certificate = _bytes(self._key), _bytes(self._certificate)
        client_ca = _bytes(self._client_ca) if self._client_ca else None
        chain = _certificates(certificate, self._certificate)
        try:
            private_key = serialization.load_pem_private_key(key, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{self._key} is no private key in PEM without a password") from error
        if private_key.public_key() != chain[0].public_key():
            raise ConfigError(f"{self._key} is not the key of {self._certificate}")
        now = datetime.datetime.now(datetime.UTC)
        if not chain[0].not_valid_before_utc <= now <= chain[0].not_valid_after_utc:
            raise ConfigError(
                f"{self._certificate} is valid from {chain[0].not_valid_before_utc} to "
                f"{chain[0].not_valid_after_utc}, which is not now"
            )
        if client_ca is not None and self._client_ca is not None:
            _certificates(client_ca, self._client_ca)
        return Material(key, certificate, client_ca, chain[0].not_valid_after_utc)

    def _new_ssl_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A session that is resumed would go past the authority that is in force now.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        try:
            context.load_cert_chain(self._certificate, self._key)
            if self._client_ca is not None:
                context.load_verify_locations(self._client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{self._certificate} cannot be used: {error}") from error
        return context


def _grpc_configuration(material: Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.certificate)], root_certificates=material.client_ca
    )


def _bytes(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def _certificates(data: bytes, path: pathlib.Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigError(f"{path} has no certificate in PEM, or a broken one") from error
