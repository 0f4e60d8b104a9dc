"""A signed package is what its signer signed, whole and unaltered, and a site says whose signature it trusts."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from packages import seal, write_package
from stepwedge.errors import PackageError, SettingsError, StepwedgeError
from stepwedge.manifest import load_package
from stepwedge.signing import (
    KEY_VARIABLE,
    decode_public_key,
    encoded,
    ensure_key,
    key_id,
    load_key,
    load_public_key,
    load_trust,
    sign_folder,
    sign_text,
    verify_folder,
    verify_text,
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two keys, ours.pem and other.pem."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "other"):
        ensure_key(folder / f"{name}.pem")
    return folder


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Path:
    """A signed package that nobody alters."""
    folder = write_package(tmp_path_factory.mktemp("signed") / "tiny")
    sign_folder(folder, keys / "ours.pem")
    return folder


@pytest.fixture
def own(signed: Path, tmp_path: Path) -> Path:
    """A signed package to alter."""
    return Path(shutil.copytree(signed, tmp_path / "tiny"))


def refused(folder: Path) -> str:
    with pytest.raises(PackageError) as caught:
        load_package(folder)
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class TestAKey:
    def test_it_is_made_on_first_use_for_its_owner_alone_with_its_public_half_beside_it(self, tmp_path: Path) -> None:
        file = ensure_key(tmp_path / "deep" / "mine.pem")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert key_id(load_public_key(tmp_path / "deep" / "mine.pub")) == key_id(load_key(file).public_key())

    def test_it_stays_the_same_afterwards(self, tmp_path: Path) -> None:
        file = ensure_key(tmp_path / "mine.pem")
        before = file.read_bytes()
        assert ensure_key(file).read_bytes() == before

    def test_without_a_name_it_is_the_one_of_the_environment_or_the_user(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv(KEY_VARIABLE, raising=False)
        assert ensure_key(None) == tmp_path / ".config" / "stepwedge" / "signing.pem"
        monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "named.pem"))
        assert ensure_key(None) == tmp_path / "named.pem"

    def test_its_id_is_the_start_of_the_sha256_of_its_der_form(self, keys: Path) -> None:
        import hashlib

        public = load_public_key(keys / "ours.pub")
        der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        assert key_id(public) == hashlib.sha256(der).hexdigest()[:16]
        assert key_id(decode_public_key(encoded(public))) == key_id(public)

    def test_what_is_no_key_is_refused_and_left_as_it_is(self, tmp_path: Path) -> None:
        file = tmp_path / "notes.txt"
        file.write_text("not a key")
        with pytest.raises(StepwedgeError, match=r"notes\.txt: is no private key in PEM format"):
            ensure_key(file)
        assert contents(tmp_path) == {"notes.txt": b"not a key"}

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            (lambda: rsa.generate_private_key(65537, 2048), "is not an elliptic-curve key on P-256"),
            (lambda: ec.generate_private_key(ec.SECP384R1()), "is not an elliptic-curve key on P-256"),
        ],
        ids=["rsa", "p384"],
    )
    def test_a_key_of_another_kind_is_refused(self, tmp_path: Path, key: object, message: str) -> None:
        file = tmp_path / "key.pem"
        file.write_bytes(private_pem(key(), serialization.NoEncryption()))  # type: ignore[operator]
        with pytest.raises(StepwedgeError, match=message):
            load_key(file)

    def test_an_encrypted_key_is_refused_as_such(self, tmp_path: Path) -> None:
        file = tmp_path / "key.pem"
        secret = serialization.BestAvailableEncryption(b"secret")
        file.write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1()), secret))
        with pytest.raises(StepwedgeError, match="the key is encrypted"):
            load_key(file)

    def test_a_key_that_is_not_there_is_named_and_how_to_make_one(self, tmp_path: Path) -> None:
        with pytest.raises(StepwedgeError, match=r"no\.pem: no such key; `stepwedge policy key FILE` makes one"):
            load_key(tmp_path / "no.pem")


def private_pem(key: ec.EllipticCurvePrivateKey, encryption: serialization.KeySerializationEncryption) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


class TestASignedText:
    def test_it_verifies_with_the_key_that_signed_it_and_unaltered_only(self, keys: Path) -> None:
        ours, other = load_key(keys / "ours.pem"), load_key(keys / "other.pem")
        signature = sign_text(b"approved", ours)
        assert verify_text(b"approved", signature, ours.public_key())
        assert not verify_text(b"approved!", signature, ours.public_key())
        assert not verify_text(b"approved", signature, other.public_key())

    @pytest.mark.parametrize("signature", ["", "????", "AAAA", "ü"])
    def test_what_is_no_signature_does_not_verify(self, keys: Path, signature: str) -> None:
        assert not verify_text(b"approved", signature, load_public_key(keys / "ours.pub"))


class TestASignedPackage:
    def test_it_says_who_signed_it(self, signed: Path, keys: Path) -> None:
        assert load_package(signed).signer == key_id(load_public_key(keys / "ours.pub"))

    def test_one_that_is_not_signed_loads_and_says_so(self, tmp_path: Path) -> None:
        assert load_package(write_package(tmp_path / "tiny")).signer is None

    def test_it_may_be_moved_and_renamed(self, own: Path) -> None:
        assert load_package(own.rename(own.with_name("elsewhere"))).signer

    def test_its_digest_covers_the_signer(self, own: Path, keys: Path) -> None:
        before = load_package(own).digest
        sign_folder(own, keys / "other.pem")
        assert load_package(own).digest != before
        assert "  signer.pub\n" in (own / "SHA256SUMS").read_text()

    def test_signing_again_with_the_same_key_keeps_the_digest(self, own: Path, keys: Path) -> None:
        before = load_package(own).digest
        sign_folder(own, keys / "ours.pem")
        assert load_package(own).digest == before

    def test_files_that_git_would_hide_are_signed_too(self, own: Path, keys: Path) -> None:
        hidden = own / ".github" / "notes"
        hidden.parent.mkdir()
        hidden.write_text("one")
        (own / ".gitignore").write_text("model.onnx")
        (own / "model.sig").unlink()
        (own / "signer.pub").unlink()
        seal(own)
        sign_folder(own, keys / "ours.pem")
        assert load_package(own).signer
        hidden.write_text("two")
        with pytest.raises(PackageError, match="notes"):
            verify_folder(own)

    def test_its_signature_is_one_that_the_tools_of_model_signing_take(self, signed: Path, keys: Path) -> None:
        import model_signing.verifying

        config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=keys / "ours.pub")
        config.verify(signed, signed / "model.sig")


class TestAnAlteredPackage:
    def test_any_altered_byte_of_any_file_is_refused(self, own: Path) -> None:
        for file in sorted(own.iterdir()):
            original = file.read_bytes()
            # Each byte of the small files that carry the signature; some of the large ones.
            step = 1 if file.name == "signer.pub" else max(1, len(original) // 25)
            for position in range(0, len(original), step):
                altered = bytearray(original)
                altered[position] ^= 1
                file.write_bytes(altered)
                message = refused(own)
                assert file.name in message or file.name == "SHA256SUMS"
            file.write_bytes(original)
        assert load_package(own).signer

    def test_any_altered_character_of_the_signature_is_refused(self, own: Path) -> None:
        file = own / "model.sig"
        original = file.read_text()
        # The payload, base64 of a long statement, is looked at here and there, everything around it everywhere.
        start, end = original.index('"payload":"') + 30, original.index('","payloadType"') - 12
        for position in [*range(start), *range(start, end, 97), *range(end, len(original))]:
            file.write_text(original[:position] + chr(ord(original[position]) ^ 1) + original[position + 1 :])
            assert "model.sig" in refused(own)

    @pytest.mark.parametrize(
        "text", ["", "{}", "[]", "null", "nonsense", '{"verificationMaterial":{}}', " {} ", "[" * 5000]
    )
    def test_a_signature_that_is_none_is_refused(self, own: Path, text: str) -> None:
        (own / "model.sig").write_text(text)
        assert "model.sig is not a signature as it was written" in refused(own)

    def test_a_signature_that_is_no_text_is_refused(self, own: Path) -> None:
        (own / "model.sig").write_bytes(b"\xff\xfe\x00")
        assert "model.sig cannot be read" in refused(own)

    def test_a_signature_with_blanks_added_is_refused(self, own: Path) -> None:
        file = own / "model.sig"
        file.write_text(file.read_text() + "\n")
        assert "model.sig" in refused(own)

    def test_a_signature_taken_away_is_missed(self, own: Path) -> None:
        (own / "model.sig").unlink()
        assert "signer.pub names a signer, but the signature model.sig is missing" in refused(own)

    def test_a_signer_taken_away_is_missed(self, own: Path) -> None:
        (own / "signer.pub").unlink()
        assert "signer.pub is missing" in refused(own)
        seal(own)
        assert "model.sig is there but not signer.pub" in refused(own)

    @pytest.mark.parametrize("name", ["model.yaml", "model.onnx", "calibration.json"])
    def test_files_altered_with_their_list_of_digests_are_refused_by_the_signature(self, own: Path, name: str) -> None:
        with (own / name).open("ab") as file:
            file.write(b"\n")
        seal(own)
        message = refused(own)
        assert "the signature model.sig does not fit the files" in message
        assert name in message

    @pytest.mark.parametrize("name", ["extra.txt", ".gitattributes", "inside/model.sig", "inside/SHA256SUMS"])
    def test_a_file_added_with_the_list_of_digests_is_refused_by_the_signature(self, own: Path, name: str) -> None:
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_text("extra")
        assert f"{name} does not belong to the package" in refused(own)
        seal(own)
        assert name in refused(own)

    def test_another_signer_put_in_is_refused(self, own: Path, keys: Path) -> None:
        shutil.copy(keys / "other.pub", own / "signer.pub")
        assert "signer.pub is not the file that the package was built with" in refused(own)
        seal(own)
        assert "the signature model.sig does not fit the files" in refused(own)

    def test_a_signature_by_another_key_is_refused(self, own: Path, keys: Path, tmp_path: Path) -> None:
        other = Path(shutil.copytree(own, tmp_path / "other"))
        sign_folder(other, keys / "other.pem")
        shutil.copy(other / "model.sig", own / "model.sig")
        assert "the signature model.sig does not fit the files" in refused(own)

    def test_a_signature_of_another_package_is_refused(self, own: Path, keys: Path, tmp_path: Path) -> None:
        other = write_package(tmp_path / "other", version="2.0.0")
        sign_folder(other, keys / "ours.pem")
        shutil.copy(other / "model.sig", own / "model.sig")
        assert "the signature model.sig does not fit the files" in refused(own)

    @pytest.mark.parametrize("key", ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
    def test_a_signer_that_is_no_key_is_refused(self, own: Path, key: str) -> None:
        (own / "signer.pub").write_text(key)
        seal(own)
        assert "signer.pub is no public key on P-256 in PEM format" in refused(own)

    def test_a_file_replaced_by_a_link_to_its_like_is_refused(self, own: Path, tmp_path: Path) -> None:
        elsewhere = (own / "model.onnx").rename(tmp_path / "model.onnx")
        (own / "model.onnx").symlink_to(elsewhere)
        assert "model.onnx" in refused(own)


class TestSigningThatFails:
    def test_with_a_bad_key_the_folder_is_as_it_was(self, own: Path, tmp_path: Path) -> None:
        before = contents(own)
        with pytest.raises(StepwedgeError, match="no such key"):
            sign_folder(own, tmp_path / "nowhere.pem")
        assert contents(own) == before

    def test_with_a_link_in_it_the_folder_is_as_it_was(self, own: Path, keys: Path, tmp_path: Path) -> None:
        (own / "link").symlink_to(tmp_path)
        before = contents(own)
        with pytest.raises(PackageError, match="cannot be signed"):
            sign_folder(own, keys / "other.pem")
        assert contents(own) == before

    def test_a_folder_without_its_list_of_digests_is_not_signed(self, tmp_path: Path, keys: Path) -> None:
        folder = write_package(tmp_path / "tiny")
        (folder / "SHA256SUMS").unlink()
        before = contents(folder)
        with pytest.raises(PackageError, match="cannot be signed"):
            sign_folder(folder, keys / "ours.pem")
        assert contents(folder) == before


class TestTrust:
    def test_a_package_by_a_trusted_key_loads(self, signed: Path, keys: Path) -> None:
        trust = load_trust([keys / "other.pub", keys / "ours.pub"])
        assert load_package(signed, trust).signer in trust.keys

    def test_while_a_key_is_changed_both_are_good_and_afterwards_what_the_old_one_signed_is_not(
        self, own: Path, keys: Path
    ) -> None:
        both, new = load_trust([keys / "ours.pub", keys / "other.pub"]), load_trust([keys / "other.pub"])
        assert load_package(own, both).signer == key_id(load_public_key(keys / "ours.pub"))
        with pytest.raises(PackageError, match="which is not among"):
            load_package(own, new)
        sign_folder(own, keys / "other.pem")
        for trust in (both, new):
            assert load_package(own, trust).signer == key_id(load_public_key(keys / "other.pub"))

    def test_a_package_by_another_key_is_refused_by_its_id_and_says_what_to_do(self, signed: Path, keys: Path) -> None:
        trust = load_trust([keys / "other.pub"])
        with pytest.raises(PackageError) as caught:
            load_package(signed, trust)
        for part in (key_id(load_public_key(keys / "ours.pub")), "trust.keys", *trust.keys, "signer.pub"):
            assert part in str(caught.value)

    def test_a_package_without_a_signature_is_refused_where_keys_are_named(self, tmp_path: Path, keys: Path) -> None:
        folder = write_package(tmp_path / "tiny")
        with pytest.raises(PackageError, match="the package is not signed"):
            load_package(folder, load_trust([keys / "ours.pub"]))

    def test_where_no_keys_are_named_anybody_may_have_signed(self, signed: Path) -> None:
        assert load_package(signed, load_trust([])).signer

    @pytest.mark.parametrize("content", [None, b"", b"words", b"\xff"])
    def test_a_file_without_a_public_key_is_named(self, tmp_path: Path, content: bytes | None) -> None:
        file = tmp_path / "site.pub"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(SettingsError, match=r"trust\.keys: .*site\.pub"):
            load_trust([file])

    def test_a_private_key_is_no_key_to_trust(self, keys: Path) -> None:
        with pytest.raises(SettingsError, match="is no public key"):
            load_trust([keys / "ours.pem"])
