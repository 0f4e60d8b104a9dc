"""Throw-away certificates: an authority of a site's own, and a server on loopback that it vouches for."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_SIGNS = x509.KeyUsage(
    key_cert_sign=True, crl_sign=True, digital_signature=False, content_commitment=False, key_encipherment=False,
    data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
)  # fmt: skip


def authority(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """The file of a new authority, and how a server on 127.0.0.1 speaks TLS that it vouches for."""
    root, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    file, server = folder / "authority.pem", folder / "server.pem"
    ca = _begun("the authority", root, root).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    file.write_bytes(_signed(ca.add_extension(_SIGNS, critical=True), root))
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    key = leaf.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    server.write_bytes(_signed(_begun("a server", leaf, root).add_extension(here, critical=False), root) + key)
    speaking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    speaking.load_cert_chain(server)
    return file, speaking


def _begun(name: str, key: ec.EllipticCurvePrivateKey, root: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    """For an hour, from the authority."""
    now = datetime.now(UTC)
    begun = x509.CertificateBuilder(
        issuer_name=_named("the authority"),
        subject_name=_named(name),
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - timedelta(minutes=5),
        not_valid_after=now + timedelta(hours=1),
    )
    of_root = x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key())
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return begun.add_extension(of_root, critical=False).add_extension(own, critical=False)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _signed(begun: x509.CertificateBuilder, root: ec.EllipticCurvePrivateKey) -> bytes:
    return begun.sign(root, hashes.SHA256()).public_bytes(Encoding.PEM)
