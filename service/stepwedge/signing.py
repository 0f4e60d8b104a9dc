"""Signatures: of packages by OpenSSF model-signing, of approvals by the same keys (ECDSA on P-256).

A signed package holds ``signer.pub``, the public key of whoever signed it, and ``model.sig``, a Sigstore bundle over
every other file. The signature says that nothing has changed since somebody with that key signed; whether that
somebody is to be trusted, the site says by its list of keys (the setting ``trust.keys``).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from stepwedge.durable import write_durably
from stepwedge.errors import PackageError, SettingsError, StepwedgeError

if TYPE_CHECKING:
    import model_signing.hashing

SIGNATURE = "model.sig"
SIGNER = "signer.pub"
KEY_VARIABLE = "STEPWEDGE_SIGNING_KEY"

PublicKey = ec.EllipticCurvePublicKey
PrivateKey = ec.EllipticCurvePrivateKey

_SUMS = "SHA256SUMS"  # the list of digests, which `manifest` defines in terms of this module
_KEY_ID_LENGTH = 16  # hexadecimal digits that a person compares; trust compares whole keys
_MAKE_A_KEY = "`stepwedge policy key FILE` makes one"

# The shape of a bundle that model-signing writes in key mode; dots are what differs from one to the next.
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"


@dataclass(frozen=True, kw_only=True)
class Trust:
    """The public keys that a site trusts, by key id. Without any, nothing is refused and nothing is clinical."""

    keys: Mapping[str, PublicKey] = field(default_factory=dict)

    def has(self, public: PublicKey) -> bool:
        """Whether it is one of the keys: the whole key, not its id."""
        return any(encoded(public) == encoded(known) for known in self.keys.values())


def key_path(path: Path | None) -> Path:
    """The file of the private key: the one that is named, or $STEPWEDGE_SIGNING_KEY, or the user's own."""
    if path is not None:
        return path
    named = os.environ.get(KEY_VARIABLE)
    return Path(named) if named else Path.home() / ".config" / "stepwedge" / "signing.pem"


def ensure_key(path: Path | None) -> Path:
    """The file of the private key, made on first use (for its owner alone) with its public half beside it.

    Raises
    ------
    StepwedgeError
        If it is there and is no usable key, or cannot be made.
    """
    file = key_path(path)
    if file.exists():
        load_key(file)
        return file
    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(file, secret, 0o600)
        write_durably(public_half(file), public_pem(key.public_key()))
    except OSError as error:
        raise StepwedgeError(f"{file}: the key cannot be written: {error.strerror}; name another file") from None
    return file


def public_half(key_file: Path) -> Path:
    """Where the public half of a key lies."""
    return key_file.with_suffix(".pub")


def load_key(file: Path) -> PrivateKey:
    """Read a private key (PEM). Raises StepwedgeError if it is not there or no unencrypted EC key on P-256."""
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except FileNotFoundError:
        raise StepwedgeError(f"{file}: no such key; {_MAKE_A_KEY}") from None
    except OSError as error:
        raise StepwedgeError(f"{file}: the key cannot be read: {error.strerror}") from None
    except TypeError:
        raise StepwedgeError(f"{file}: the key is encrypted; give an unencrypted one, readable by you alone") from None
    except (ValueError, UnsupportedAlgorithm):
        raise StepwedgeError(f"{file}: is no private key in PEM format; {_MAKE_A_KEY}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise StepwedgeError(f"{file}: is not an elliptic-curve key on P-256; {_MAKE_A_KEY}")
    return key


def load_public_key(file: Path) -> PublicKey:
    """Read a public key (PEM). Raises OSError, or ValueError if it is no EC key on P-256."""
    return _public(serialization.load_pem_public_key, file.read_bytes())


def decode_public_key(text: str) -> PublicKey:
    """A public key from base64 of its DER form. Raises ValueError if it is no EC key on P-256."""
    return _public(serialization.load_der_public_key, base64.b64decode(text, validate=True))


def encoded(public: PublicKey) -> str:
    """Base64 of the DER form of a public key."""
    return base64.b64encode(_der(public)).decode("ascii")


def public_pem(public: PublicKey) -> bytes:
    """The PEM form of a public key."""
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_id(public: PublicKey) -> str:
    """What people call a key by: the first 16 hexadecimal digits of the SHA-256 of its DER form."""
    return hashlib.sha256(_der(public)).hexdigest()[:_KEY_ID_LENGTH]


def load_trust(files: Iterable[Path]) -> Trust:
    """The keys that a site trusts. Raises SettingsError that names a file that holds no public key."""
    keys: dict[str, PublicKey] = {}
    for file in files:
        try:
            public = load_public_key(file)
        except OSError as error:
            raise SettingsError(f"trust.keys: {file} cannot be read: {error.strerror}") from None
        except ValueError:
            raise SettingsError(
                f"trust.keys: {file} is no public key on P-256 in PEM format; name the .pub beside a signing key"
            ) from None
        keys[key_id(public)] = public
    return Trust(keys=keys)


def sign_text(text: bytes, key: PrivateKey) -> str:
    """Sign a small text: base64 of an ECDSA signature with SHA-256."""
    return base64.b64encode(key.sign(text, ec.ECDSA(hashes.SHA256()))).decode("ascii")


def verify_text(text: bytes, signature: str, public: PublicKey) -> bool:
    """Whether a signature that ``sign_text`` made is over this text and by this key."""
    try:
        public.verify(_decoded(signature), text, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def is_signed(folder: Path) -> bool:
    """Whether a package claims to be signed: either half of the claim counts, so that neither can be taken away."""
    return any(os.path.lexists(folder / name) for name in (SIGNATURE, SIGNER))


def sign_folder(folder: Path, key_file: Path) -> str:
    """Sign a package's folder as it is; the key id.

    Writes ``signer.pub``, its line in ``SHA256SUMS`` (so that the package's digest says who signed it) and
    ``model.sig``. The list of digests must be there, and right: check the package first. If anything goes wrong, the
    folder is as it was.

    Raises
    ------
    StepwedgeError
        If the key cannot be used.
    PackageError
        If the folder cannot be signed: no list of digests, a symbolic link in it, or it cannot be written.
    """
    import model_signing.signing

    public = load_key(key_file).public_key()
    before = {name: _contents(folder / name) for name in (SIGNATURE, SIGNER, _SUMS)}
    try:
        pem = public_pem(public)
        sums = (folder / _SUMS).read_text(encoding="utf-8")
        (folder / SIGNATURE).unlink(missing_ok=True)
        write_durably(folder / SIGNER, pem)
        write_durably(folder / _SUMS, _with_line(sums, SIGNER, hashlib.sha256(pem).hexdigest()).encode())
        config = model_signing.signing.Config()  # type: ignore[no-untyped-call]
        config.use_elliptic_key_signer(private_key=key_file)
        config.set_hashing_config(_everything()).sign(folder, folder / SIGNATURE)
        bundle = _as_written((folder / SIGNATURE).read_text(encoding="utf-8"))
        if bundle is None:
            raise ValueError("model-signing writes bundles of another form than is known here; update one of the two")
        write_durably(folder / SIGNATURE, bundle.encode())
        return verify_folder(folder)
    except BaseException as error:
        for name, contents in before.items():
            (folder / name).unlink(missing_ok=True)
            if contents is not None:
                write_durably(folder / name, contents)
        if isinstance(error, OSError):
            raise PackageError(f"{folder}: cannot be signed: {error.strerror}: {error.filename}") from None
        if isinstance(error, ValueError):
            raise PackageError(f"{folder}: cannot be signed: {error}") from None
        raise


def verify_folder(folder: Path) -> str:
    """Check that every file is as its signer signed it; the signer's key id.

    Raises
    ------
    PackageError
        If the signature or the signer's key is missing, unreadable or altered, or if the signature is not by that key
        or not over these files.
    """
    import model_signing.verifying

    again = "restore it from where the package came from, or have the package signed again"
    try:
        public = load_public_key(folder / SIGNER)
    except FileNotFoundError:
        raise PackageError(f"{folder}: {SIGNATURE} is there but not {SIGNER}, the signer's key; {again}") from None
    except (OSError, ValueError):
        raise PackageError(f"{folder}: {SIGNER} is no public key on P-256 in PEM format; {again}") from None
    try:
        text = (folder / SIGNATURE).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PackageError(
            f"{folder}: {SIGNER} names a signer, but the signature {SIGNATURE} is missing; {again}"
        ) from None
    except (OSError, UnicodeDecodeError):
        raise PackageError(f"{folder}: {SIGNATURE} cannot be read; {again}") from None
    if text != _as_written(text):
        raise PackageError(f"{folder}: {SIGNATURE} is not a signature as it was written; {again}")
    config = model_signing.verifying.Config()  # type: ignore[no-untyped-call]
    config.use_elliptic_key_verifier(public_key=folder / SIGNER)
    try:
        # The library tells of old formats on standard output, which is our caller's.
        with contextlib.redirect_stdout(io.StringIO()):
            config.set_hashing_config(_everything()).verify(folder, folder / SIGNATURE)
    except InvalidSignature:
        raise PackageError(f"{folder}: {SIGNATURE} is not valid: altered, or not made by {SIGNER}; {again}") from None
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        # What the library and those below it raise over a signed statement that is not of the expected form.
        reason = str(error).strip().rstrip(".")
        raise PackageError(f"{folder}: the signature {SIGNATURE} does not fit the files: {reason}; {again}") from None
    return key_id(public)


def require_trusted(folder: Path, trust: Trust) -> None:
    """Refuse a verified package whose signer is not among the keys of a site that has named any.

    Raises PackageError that says whose key it is and what to do.
    """
    if not trust.keys:
        return
    trusted = ", ".join(sorted(trust.keys))
    if not is_signed(folder):
        raise PackageError(
            f"{folder}: the package is not signed, and trust.keys asks for a signature by one of {trusted}; get a "
            "signed package, or sign this one with `stepwedge package sign`"
        )
    public = load_public_key(folder / SIGNER)
    if not trust.has(public):
        raise PackageError(
            f"{folder}: the package is signed by the key {key_id(public)}, which is not among trust.keys ({trusted}); "
            f"if you know from the signer that this is their key, add {folder / SIGNER} to trust.keys"
        )


def _write_new(file: Path, contents: bytes, mode: int) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(contents)
        opened.flush()
        os.fsync(descriptor)


def _contents(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _with_line(sums: str, name: str, digest: str) -> str:
    """The list of digests with one file's line put in or replaced, in the order of ``manifest.digest_list``."""
    digests = {file: value for value, _, file in (line.partition("  ") for line in sums.splitlines())}
    digests[name] = digest
    return "".join(f"{digests[file]}  {file}\n" for file in sorted(digests, key=Path))


def _everything() -> model_signing.hashing.Config:
    """What a signature covers: every file but itself. The library would leave out .gitignore and its like."""
    import model_signing.hashing

    config = model_signing.hashing.Config()  # type: ignore[no-untyped-call]
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _as_written(text: str) -> str | None:
    """A bundle in the one form in which we write it, so that no byte of it can change unnoticed. None if it is none."""
    try:
        bundle: Any = json.loads(text)
        hint = bundle["verificationMaterial"]["publicKey"]["hint"]
        payload = bundle["dsseEnvelope"]["payload"]
        (signature,) = (signed["sig"] for signed in bundle["dsseEnvelope"]["signatures"])
        for value in (payload, signature):
            _decoded(value)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(hint, str) or not hint:
        return None
    written = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": payload,
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": signature, "keyid": ""}],
        },
    }
    return json.dumps(written, separators=(",", ":"))


def _decoded(text: str) -> bytes:
    """Base64 to bytes, for the one text that encodes them. Raises ValueError for any other."""
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError) as error:
        raise ValueError(str(error)) from None
    if base64.b64encode(value).decode("ascii") != text:
        raise ValueError("not the canonical base64 of anything")
    return value


def _der(public: PublicKey) -> bytes:
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _public(load: Callable[[bytes], object], contents: bytes) -> PublicKey:
    try:
        key = load(contents)
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not an elliptic-curve key on P-256")
    return key
