"""One request to the page, as those who answer it need it, and the page that it gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from stepwedge.page.access import Visitor
from stepwedge.page.desk import Desk
from stepwedge.page.render import render

# What is said above a page after something was done there.
_SAID = {
    "retried": "Put back into the queue.",
    "retried-all": "Put back. The workers take them up within half a minute.",
    "sent": "It will be sent within half a minute, if nothing is against it any more.",
    "done": "Done.",
    "refused": "Refused; the reason is beside it.",
    "asked": "Asked for. The DICOM node has not taken it up yet: it does as soon as it runs.",
    "seen": "Told to the monitor, which takes a few seconds to show it.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """One request, as those who answer it need it."""

    desk: Desk
    request: Request
    visitor: Visitor
    form: Mapping[str, str]

    @property
    def who(self) -> str:
        """Who does it."""
        return self.visitor.who

    def page(self, template: str, *, status: int = 200, refresh: int = 0, **values: Any) -> Response:
        """A page of ours."""
        secret = self.visitor.session.secret if self.visitor.session else ""
        said = self.request.query_params.get("said", "")
        common = {
            "visitor": self.visitor,
            "secret": secret,
            "path": self.request.url.path,
            "refresh": refresh,
            "said": _SAID.get(said, ""),
            "said_tone": {"refused": "bad", "asked": "busy"}.get(said, "good"),
            "access": self.desk.access.kind,
        }
        return HTMLResponse(render(template, common | values), status_code=status)


Answer = Callable[[Asking], Response]
