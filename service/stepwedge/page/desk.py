"""What the page works with: one for a process, opened before the port is."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from stepwedge import workflow
from stepwedge.identity import Site
from stepwedge.page.access import Access
from stepwedge.page.neighbours import Neighbours
from stepwedge.page.turns import Turns
from stepwedge.settings import Settings
from stepwedge.store import Store
from stepwedge.workflow import QueueClient

STATEMENT_SECONDS = 15.0  # a page that takes longer is of no use to whoever asked, and holds up others


@dataclass(kw_only=True)
class Desk:
    """The node, as far as the page reads and changes it. The queue is opened when something is put into it."""

    settings: Settings
    site: Site
    store: Store
    access: Access
    neighbours: Neighbours
    turns: Turns = field(default_factory=Turns)
    _queue: QueueClient | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def queue(self) -> QueueClient:
        """The queue. Raises SQLAlchemyError where it cannot be reached."""
        with self._lock:
            if self._queue is None:
                self._queue = workflow.QueueClient(self.settings)
            return self._queue

    def close(self) -> None:
        """Close every connection but the database's, which is another's."""
        self.turns.close()
        self.access.close()
        self.neighbours.close()
        if self._queue is not None:
            self._queue.close()


def open_desk(settings: Settings, site: Site, store: Store) -> Desk:
    """Ready for the page; ``access.check`` says whether anybody can sign in."""
    return Desk(
        settings=settings, site=site, store=store, access=Access(settings, site), neighbours=Neighbours(settings)
    )
