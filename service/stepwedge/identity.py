"""Who this node is: its identifier, and the keys under which UIDs are hashed before they leave it.

One key is current: studies that come new are named under it. A study that the node holds keeps the key that it came
under, and with it everything that is hashed of it (its instances, readers, station), so that late images, repeated
sends, late labels and results find what is there. The identity is one file, made at the first start::

    {"node": "…", "key": "…"}                                                  before the first rotation
    {"schema": 2, "node": "…", "current": "<id>", "keys": [{"id", "key", "since"}, …]}    since then, newest first
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stepwedge.durable import own_name, sync_folder, write_durably
from stepwedge.errors import SettingsError

_SCHEMA = 2
_KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """The node's identity. Losing a key orphans every hash that has left the node under it: back it up."""

    node: str  # identifier of the node, 32 hexadecimal characters
    key: bytes  # 32 random bytes
    older: tuple[bytes, ...] = ()  # keys of studies that came before the last rotations, newest first

    def hash(self, value: str) -> str:
        """A keyed hash of an identifier (HMAC-SHA-256, first 128 bits), 32 hexadecimal characters."""
        return hmac.new(self.key, value.encode(), hashlib.sha256).hexdigest()[:32]

    @property
    def own_caller(self) -> str:
        """The AE title under which this node sends to itself: it takes it always, and nobody else can guess it."""
        return f"SW{self.hash('own caller').upper()[:14]}"

    def each(self) -> list[Site]:
        """The identity under each of its keys alone, the current one first."""
        return [replace(self, key=key, older=()) for key in (self.key, *self.older)]

    def holding(self, study_uid: str, is_held: Callable[[str], bool]) -> Site:
        """The identity under the key that a study is named under: an older one where the node holds it under that
        one, and otherwise the current one. ``is_held`` tells of a study's hash.
        """
        if not self.older:
            return self
        each = self.each()
        return next((site for site in each if is_held(site.hash(study_uid))), each[0])

    def naming(self, study: str, study_uid: str) -> Site:
        """The identity under the key that gave a study its name; under the current one where none did."""
        return self.holding(study_uid, lambda name: name == study)


def key_id(key: bytes) -> str:
    """The identifier of a key, which tells nothing of it: 16 hexadecimal characters."""
    return hashlib.sha256(b"stepwedge site key|" + key).hexdigest()[:16]


def site_file(data_dir: Path, file: Path | None = None) -> Path:
    """Where the identity is: the file that ``site_key_file`` names, or the data folder's own."""
    return file or data_dir / "keys" / "site.json"


def load_site(data_dir: Path, file: Path | None = None) -> Site:
    """Read the node's identity, or make one at the first start, where no ``file`` is named for it.

    Raises SettingsError if it cannot be read, is gone from a node that has received studies, or lacks a key that the
    data folder was used with: under another key the same study would get another name, and be taken for another study.
    """
    own = site_file(data_dir)
    if file is not None:
        if not file.exists():
            raise SettingsError(
                f"{file}: site_key_file names a file that is not there; restore it, or make one with "
                "`stepwedge keys new` for a new node"
            )
        site = read_site(file)
        _remember(data_dir, own, site, file)
        return site
    if not own.exists():
        if any(any((data_dir / held).glob("*/*")) for held in ("spool/studies", "results")):
            raise SettingsError(
                f"{own}: the node's identity is gone, but {data_dir} holds studies; restore the file "
                "from a backup, or start with an empty data folder"
            )
        create_site(own)
    return read_site(own)


def read_site(file: Path) -> Site:
    """An identity from its file, of either form. Raises SettingsError."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.get("schema", 1) == 1:
            return Site(node=str(values["node"]), key=_key(values["key"]))
        if values["schema"] != _SCHEMA:
            raise ValueError(f"schema {values['schema']}, this version reads {_SCHEMA}")
        keys = {str(item["id"]): _key(item["key"]) for item in values["keys"]}
        if any(name != key_id(key) for name, key in keys.items()):
            raise ValueError("a key is not that of its id")
        current = keys.pop(values["current"])
        return Site(node=str(values["node"]), key=current, older=tuple(keys.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # A key that cannot be read as one must not stand in a message.
        said = f": {error}" if isinstance(error, ValueError) and "hex" not in str(error) else ""
        raise SettingsError(
            f"{file}: the node's identity cannot be read ({type(error).__name__}{said}); restore it from a backup"
        ) from None


def keys_of(file: Path) -> list[dict[str, str]]:
    """Each key's id, and since when it is there where that is known, the current one first. Raises SettingsError."""
    site = read_site(file)
    listed = json.loads(file.read_text(encoding="utf-8")).get("keys", [])
    since = {str(item["id"]): str(item.get("since", "")) for item in listed}
    return [{"id": name, "since": since.get(name, "")} for name in (key_id(each.key) for each in site.each())]


def rotate_site(file: Path, to: Path | None = None) -> str:
    """Make a new key current, and keep the others; the new key's id.

    Nothing may read the file meanwhile that goes on to name studies: see `stepwedge keys rotate`.

    Raises
    ------
    SettingsError
        If the file cannot be read.
    OSError
        If it, or ``to``, which is written in its place where given, cannot be written.
    """
    site, known = read_site(file), keys_of(file)
    new = secrets.token_bytes(_KEY_BYTES)
    keys: Sequence[tuple[bytes, str]] = [
        (new, datetime.now(UTC).isoformat(timespec="seconds")),
        *((each.key, item["since"]) for each, item in zip(site.each(), known, strict=True)),
    ]
    values: dict[str, Any] = {
        "schema": _SCHEMA,
        "node": site.node,
        "current": key_id(new),
        "keys": [{"id": key_id(key), "key": key.hex(), "since": since} for key, since in keys],
    }
    if to is None:
        _replace(file, values)
    else:
        _write_new(to, values)
    return key_id(new)


def create_site(file: Path, *, only_once: bool = False) -> None:
    """Make an identity and write it whole, though several roles may start together: the first one's counts.

    Raises FileExistsError where it has to be made here, ``only_once``, and is there already.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        _write_new(file, {"node": secrets.token_hex(16), "key": secrets.token_hex(_KEY_BYTES)})
    except FileExistsError:
        if only_once:
            raise


def _key(text: str) -> bytes:
    key = bytes.fromhex(text)
    if not key:
        raise ValueError("a key is empty")
    return key


def _remember(data_dir: Path, own: Path, site: Site, file: Path) -> None:
    """Keep the ids of the keys that a data folder was used with, and refuse a file that lacks one of them."""
    noted = own.with_name("ids.json")
    given = [key_id(each.key) for each in site.each()]
    try:
        before = set(json.loads(noted.read_text(encoding="utf-8"))) if noted.exists() else set()
        if own.exists():
            before |= {key_id(each.key) for each in read_site(own).each()}
        if missing := sorted(before - set(given)):
            raise SettingsError(
                f"{file}: lacks the site key {', '.join(missing)}, under which {data_dir} was used; name the file that "
                "has it, or start with an empty data folder"
            )
        if before != set(given):
            noted.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_durably(noted, json.dumps(given).encode())
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"{noted}: cannot be read or written ({type(error).__name__})") from None


def _write_new(file: Path, values: dict[str, Any]) -> None:
    """Write a file whole and only once. Raises FileExistsError."""
    temporary = _written_beside(file, values)
    try:
        os.link(temporary, file)
    finally:
        temporary.unlink()
    sync_folder(file.parent)


def _replace(file: Path, values: dict[str, Any]) -> None:
    temporary = _written_beside(file, values)
    try:
        temporary.rename(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def _written_beside(file: Path, values: dict[str, Any]) -> Path:
    """A new file beside another one, durable, for its owner alone."""
    temporary = file.with_name(f".{file.name}.{own_name()}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(json.dumps(values) + "\n")
        out.flush()
        os.fsync(out.fileno())
    return temporary
