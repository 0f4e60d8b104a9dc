"""Who this node is: its identifier, and the key under which UIDs are hashed before they leave it."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from stepwedge.durable import sync_folder
from stepwedge.errors import SettingsError


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """The node's identity. Losing the key orphans every hash that has left the node: back it up."""

    node: str  # identifier of the node, 32 hexadecimal characters
    key: bytes  # 32 random bytes

    def hash(self, value: str) -> str:
        """A keyed hash of an identifier (HMAC-SHA-256, first 128 bits), 32 hexadecimal characters."""
        return hmac.new(self.key, value.encode(), hashlib.sha256).hexdigest()[:32]

    @property
    def own_caller(self) -> str:
        """The AE title under which this node sends to itself: it takes it always, and nobody else can guess it."""
        return f"SW{self.hash('own caller').upper()[:14]}"


def load_site(data_dir: Path) -> Site:
    """Read the node's identity, or make one at the first start.

    Raises SettingsError if it cannot be read, or is gone from a node that has received studies: with another identity
    the same study would get other hashes, and its results other UIDs.
    """
    file = data_dir / "keys" / "site.json"
    if not file.exists():
        if any(any((data_dir / held).glob("*/*")) for held in ("spool/studies", "results")):
            raise SettingsError(
                f"{file}: the node's identity is gone, but {data_dir} holds studies; restore the file "
                "from a backup, or start with an empty data folder"
            )
        _create(file)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Site(node=str(values["node"]), key=bytes.fromhex(values["key"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{file}: the node's identity cannot be read ({error}); restore it from a backup") from None


def _create(file: Path) -> None:
    """Write the file whole and only once, though several roles may start together."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    text = json.dumps({"node": secrets.token_hex(16), "key": secrets.token_hex(32)}) + "\n"
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    try:
        os.link(temporary, file)
    except FileExistsError:
        pass  # another role was first
    finally:
        temporary.unlink()
    sync_folder(file.parent)
