"""How long each of the operator's pages takes with many studies in the database.

``make bench-page``. Prints a table, and JSON as its last line. Absolute times are the machine's.
"""

from __future__ import annotations

import hashlib
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parents[1]))

from page_served import page
from stepwedge.schema import DELIVERIES, INSTANCES, REVISIONS, STUDIES, UNITS
from stepwedge.store import Store

STUDIES_KEPT = 100_000
SECONDS_APART = 8.0
TIMES = 7
# Of studies that a model has selected; one in a hundred is of none.
SHARES = {"reported": 90.0, "deferred": 7.0, "rejected": 2.9, "failed": 0.1}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="stepwedge-bench-") as folder, page(Path(folder)) as served:
        print(f"making {STUDIES_KEPT:,} studies …", file=sys.stderr)
        names = fill(served.store)
        secret = served.secret()
        paths = [
            "/", "/wall", "/studies", *(f"/studies?state={state}" for state in SHARES), "/studies?state=not_routed",
            "/studies?state=withheld", "/studies?state=pending", f"/studies?after={time.time() - 400_000}-{'0' * 32}",
            f"/studies/{names[-1]}", "/quarantine", "/actions", "/metrics",
        ]  # fmt: skip
        taken = {path.partition("after=")[0]: _seconds(lambda path=path: served.get(path)) for path in paths}
        found = {"name": names[7][:12]}
        taken["a search"] = _seconds(lambda: served.post("/search", found, secret=secret), expect=303)
    for path, seconds in taken.items():
        print(f"{path[:40]:40} {1000 * seconds:8.0f} ms")
    print(json.dumps({"studies": STUDIES_KEPT, "seconds": {k: round(v, 4) for k, v in taken.items()}}))
    return 0


def fill(store: Store) -> list[str]:
    """Studies as after some days of work; their names, oldest first."""
    draw, now = random.Random(1), time.time()
    names = [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(STUDIES_KEPT)]
    rows: dict[sa.Table, list[dict[str, Any]]] = {
        table: [] for table in (STUDIES, INSTANCES, REVISIONS, UNITS, DELIVERIES)
    }
    for number, name in enumerate(names):
        at = now - (STUDIES_KEPT - number) * SECONDS_APART
        routed, uid, unit = draw.random() > 0.01, f"1.2.{number}", f"{name}.1.tiny"
        (state,) = draw.choices(list(SHARES), list(SHARES.values()))
        rows[STUDIES].append(
            {"study": name, "study_uid": uid, "first_instance_at": at, "last_instance_at": at, "revision": int(routed),
             "open": False}
        )  # fmt: skip
        rows[INSTANCES].append(
            {"study": name, "instance": name, "digest": "d" * 64, "path": name, "study_uid": uid, "series_uid": uid,
             "sop_uid": uid, "sop_class_uid": uid, "transfer_syntax_uid": uid, "modality": "CR", "routed": routed,
             "size": 1, "received_at": at, "sender": "PACS"}
        )  # fmt: skip
        if not routed:
            continue
        rows[REVISIONS].append(
            {"study": name, "revision": 1, "closed_at": at + 10, "last_instance_at": at, "paths": ["x"]}
        )
        rows[UNITS].append(
            {"unit": unit, "study": name, "revision": 1, "model_name": "tiny", "model_digest": "a" * 64, "state": state,
             "reasons": [], "created_at": at + 10, "last_instance_at": at, "ended_at": at + 12, "tries": 0}
        )  # fmt: skip
        for destination, stands in (("pacs", "delivered"), ("ward", "withheld")) if state != "failed" else ():
            rows[DELIVERIES].append(
                {"unit": unit, "destination": destination, "state": stands, "attempts": 1, "error": "",
                 "updated_at": at + 13}
            )  # fmt: skip
    with store.engine.begin() as db:
        for table, values in rows.items():
            for start in range(0, len(values), 5000):
                db.execute(sa.insert(table), values[start : start + 5000])
    return names


def _seconds(ask: Any, *, expect: int = 200) -> float:
    """The median of several times."""
    taken = []
    for _ in range(TIMES):
        began = time.perf_counter()
        assert ask().status_code == expect
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


if __name__ == "__main__":
    raise SystemExit(main())
