"""Whose signature it is, over what."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from stepwatch.errors import WatchError
from stepwatch.signatures import PrivateKey, canonical, is_by, load_people, load_private_key, name_of, sign

KINDS = {"p256": lambda: ec.generate_private_key(ec.SECP256R1()), "ed25519": ed25519.Ed25519PrivateKey.generate}


def write(folder: Path, name: str, key: PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> Path:
    """Both halves; the path of the public one."""
    (folder / f"{name}.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    file = folder / f"{name}.pub"
    file.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_is_by_its_key_over_its_text_alone(kind: str, tmp_path: Path) -> None:
    write(tmp_path, "jane", KINDS[kind]())
    people = load_people([tmp_path / "jane.pub", write(tmp_path, "john", KINDS["p256"]())])
    key = load_private_key(tmp_path / "jane.pem")
    assert name_of(key, people) == "jane"
    text = canonical({"event": "approved", "at": 1.5, "who": "jane"})
    signature = sign(text, key)
    assert is_by(text, signature, people["jane"])
    assert not is_by(text, signature, people["john"])
    assert not is_by(text.replace(b"1.5", b"1.6"), signature, people["jane"])
    assert not is_by(text, signature[:-4], people["jane"])
    assert not is_by(text, "no base64!", people["jane"])


def test_a_key_that_nobody_is_known_by_is_refused(tmp_path: Path) -> None:
    people = load_people([write(tmp_path, "jane", KINDS["ed25519"]())])
    with pytest.raises(WatchError, match=r"none of retrain\.keys"):
        name_of(KINDS["ed25519"](), people)


def test_other_kinds_of_keys_are_refused(tmp_path: Path) -> None:
    for name, key in (
        ("rsa", rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        ("p384", ec.generate_private_key(ec.SECP384R1())),
    ):
        file = write(tmp_path, name, key)
        with pytest.raises(WatchError, match="P-256"):
            load_people([file])
        with pytest.raises(WatchError, match="P-256"):
            load_private_key(tmp_path / f"{name}.pem")


def test_files_that_are_no_keys_are_said(tmp_path: Path) -> None:
    file = tmp_path / "jane.pub"
    with pytest.raises(WatchError, match="cannot be read"):
        load_people([file])
    file.write_text("-----BEGIN NOTHING-----")
    with pytest.raises(WatchError, match="no public key"):
        load_people([file])
    with pytest.raises(WatchError, match="no private key"):
        load_private_key(file)


def test_two_people_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = [write(tmp_path, "jane", KINDS["p256"]()), write(tmp_path / "other", "jane", KINDS["p256"]())]
    with pytest.raises(WatchError, match="two keys are named jane"):
        load_people(files)


def test_an_encrypted_key_is_said(tmp_path: Path) -> None:
    file = tmp_path / "jane.pem"
    file.write_bytes(
        KINDS["p256"]().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
    )
    with pytest.raises(WatchError, match="encrypted"):
        load_private_key(file)
