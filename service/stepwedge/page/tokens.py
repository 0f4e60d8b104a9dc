"""Tokens that people and programs sign in with: the file has their digests alone.

::

    - {name: night-shift, role: operator, sha256: 5e88…}
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from stepwedge.errors import SettingsError, describe_validation
from stepwedge.settings import Role

_PREFIX = "sw_"  # by which scanners for secrets, and people, know one
_BYTES = 32


class Token(BaseModel):
    """One entry of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}$")]
    role: Role
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @property
    def proof(self) -> str:
        """What a session remembers of it."""
        return self.sha256[:16]


_tokens = TypeAdapter(list[Token])


def make_token(name: str, role: str) -> tuple[str, str]:
    """A new token, and its entry in the file. Raises SettingsError for a name or a role that cannot be."""
    token = _PREFIX + secrets.token_urlsafe(_BYTES)
    values = {"name": name, "role": role, "sha256": _digest(token)}
    try:
        Token.model_validate(values)
    except ValidationError as error:
        raise SettingsError(describe_validation("page-token", error)) from None
    return token, f"- {yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=1000).strip()}"


def read_tokens(file: Path) -> tuple[Token, ...]:
    """The entries of a file. Raises SettingsError."""
    try:
        found = _tokens.validate_python(yaml.safe_load(file.read_text(encoding="utf-8")) or [])
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise SettingsError(f"page.tokens_file: {file}: cannot be read: {why}") from None
    except yaml.YAMLError:
        # The parser quotes what it found, which may be a token that was put there by mistake.
        raise SettingsError(f"page.tokens_file: {file}: cannot be read as YAML") from None
    except ValidationError as error:
        places = ", ".join(".".join(str(part) for part in item["loc"]) for item in error.errors(include_url=False))
        raise SettingsError(
            f"page.tokens_file: {file}: wrong at {places or 'the top'}; wanted a list of entries as `stepwedge "
            "page-token` prints them"
        ) from None
    if len({token.name for token in found}) != len(found):
        raise SettingsError(f"page.tokens_file: {file}: two entries have one name; each name says who did something")
    return tuple(found)


@dataclass
class TokenFile:
    """The tokens as the file has them now: one that is taken out of it is of no use at once."""

    file: Path
    _stamp: tuple[int, int] | None = None
    _tokens: tuple[Token, ...] = ()

    def now(self) -> tuple[Token, ...]:
        """The entries. Raises SettingsError for a file that cannot be read: then nobody signs in."""
        try:
            found = self.file.stat()
        except OSError as error:
            raise SettingsError(f"page.tokens_file: {self.file}: cannot be read: {error.strerror}") from None
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp != self._stamp:
            self._tokens = read_tokens(self.file)
            self._stamp = stamp
        return self._tokens

    def entry(self, token: str) -> Token | None:
        """The entry of a token; None for one that is not in the file."""
        digest = _digest(token)
        # Every entry is compared, in a time that tells nothing.
        found = [entry for entry in self.now() if hmac.compare_digest(entry.sha256, digest)]
        return found[0] if found else None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
