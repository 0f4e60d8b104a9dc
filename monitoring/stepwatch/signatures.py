"""Signatures of people over what they decide: detached, by keys in PEM files on P-256 (ECDSA, SHA-256) or Ed25519."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from stepwatch.errors import WatchError

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def canonical(values: Mapping[str, Any]) -> bytes:
    """The one JSON text of some values that is hashed and signed."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def load_people(files: Iterable[Path]) -> dict[str, PublicKey]:
    """The keys of people who may decide, by name: that of the file, without its ending. Raises WatchError."""
    people: dict[str, PublicKey] = {}
    for file in files:
        try:
            key = serialization.load_pem_public_key(file.read_bytes())
        except OSError as error:
            raise WatchError(f"retrain.keys: {file} cannot be read: {error.strerror}") from None
        except (ValueError, UnsupportedAlgorithm):
            raise WatchError(f"retrain.keys: {file} is no public key in PEM format; name the .pub beside one") from None
        if isinstance(key, ec.EllipticCurvePublicKey) and not isinstance(key.curve, ec.SECP256R1):
            raise WatchError(f"retrain.keys: {file} is on another curve than P-256; make a key on P-256 or Ed25519")
        if not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
            raise WatchError(f"retrain.keys: {file} is neither on P-256 nor Ed25519; make one that is")
        if file.stem in people:
            raise WatchError(f"retrain.keys: two keys are named {file.stem}; rename one of the files")
        people[file.stem] = key
    return people


def load_private_key(file: Path) -> PrivateKey:
    """Read a person's private key (PEM, not encrypted). Raises WatchError."""
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except OSError as error:
        raise WatchError(f"{file}: the key cannot be read: {error.strerror}") from None
    except TypeError:
        raise WatchError(f"{file}: the key is encrypted; give an unencrypted one, readable by you alone") from None
    except (ValueError, UnsupportedAlgorithm):
        raise WatchError(f"{file}: is no private key in PEM format; `stepwedge policy key FILE` makes one") from None
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    raise WatchError(f"{file}: is neither on P-256 nor Ed25519; `stepwedge policy key FILE` makes one")


def name_of(key: PrivateKey, people: Mapping[str, PublicKey]) -> str:
    """Who holds a private key, by the names of the public ones. Raises WatchError if nobody does."""
    own = _der(key.public_key())
    for name, public in people.items():
        if _der(public) == own:
            return name
    raise WatchError("the key is none of retrain.keys: have its public half added to the settings by who keeps them")


def sign(text: bytes, key: PrivateKey) -> str:
    """Base64 of a detached signature."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return base64.b64encode(key.sign(text, ec.ECDSA(hashes.SHA256()))).decode("ascii")
    return base64.b64encode(key.sign(text)).decode("ascii")


def is_by(text: bytes, signature: str, public: PublicKey) -> bool:
    """Whether a signature is over this text and by this key."""
    try:
        raw = base64.b64decode(signature, validate=True)
        if isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(raw, text, ec.ECDSA(hashes.SHA256()))
        else:
            public.verify(raw, text)
    except (InvalidSignature, ValueError, binascii.Error):
        return False
    return True


def _der(public: PublicKey) -> bytes:
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
