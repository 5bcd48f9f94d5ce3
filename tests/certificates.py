"""Keys and certificates for tests, made while they run."""

from __future__ import annotations

import datetime
import ipaddress
import pathlib
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


class Authority:
    """Somebody who signs certificates. `ca` is the file of its own."""

    def __init__(self, folder: pathlib.Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        _, self.ca = _written(
            folder, name, self._key, _certificate(name, self._key, name, self._key, is_authority=True)
        )

    def issue(
        self,
        name: str,
        *,
        names: Sequence[str] = (),
        begin: datetime.timedelta = -DAY,
        end: datetime.timedelta = DAY,
    ) -> tuple[pathlib.Path, pathlib.Path]:
        """Returns the files of a new key and of its certificate for 127.0.0.1 and URIs, valid from `begin` to `end` after now."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key, self._name, self._key, names=names, begin=begin, end=end)
        return _written(self._folder, name, key, certificate)


def self_signed(folder: pathlib.Path, name: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the files of a new key and of its certificate for 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _written(folder, name, key, _certificate(name, key, name, key, is_authority=True))


def issued(folder: pathlib.Path, name: str) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
    """Returns the files of a new key, of its certificate for 127.0.0.1, and of the authority that signed it.

    Some libraries take no certificate that is its own authority.
    """
    authority = Authority(folder, f"{name} authority")
    return *authority.issue(name), authority.ca


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    signer: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool = False,
    names: Sequence[str] = (),
    begin: datetime.timedelta = -DAY,
    end: datetime.timedelta = DAY,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    uris = [x509.UniformResourceIdentifier(each) for each in names]
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begin)
        .not_valid_after(now + end)
        .add_extension(x509.SubjectAlternativeName([*uris, address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _written(
    folder: pathlib.Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> tuple[pathlib.Path, pathlib.Path]:
    key_file, file = folder / f"{name}.key", folder / f"{name}.pem"
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key_file, file
