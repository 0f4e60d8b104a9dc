"""Says to the container's engine whether the program in it is alive: status 0, or 1 and why.

Kubernetes asks over HTTP and does without. Here the port is the settings' own, so that nothing has to be said twice.
"""

from __future__ import annotations

import http.client
import sys
from pathlib import Path

_TIMEOUT_SECONDS = 8.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not listened on


def main(program: str) -> int:
    """Ask `/livez` of what process 1 is, `stepwedge` or `stepwatch`."""
    # An init of the engine carries our arguments behind its own.
    arguments = Path("/proc/1/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    file = Path(arguments[arguments.index("--config") + 1]) if "--config" in arguments else None
    if program == "stepwatch":
        from stepwatch.settings import load_settings as load_watch_settings

        watched = load_watch_settings(file).http
        host, port = watched.host, watched.port
    else:
        from stepwedge.settings import load_settings

        settings = load_settings(file)
        if "infer" in arguments:
            host, port = settings.inference.host, settings.inference.port
        elif settings.http.port is None:
            print("http.port is null: nothing can be asked")  # noqa: T201
            return 0
        else:
            host, port = settings.http.host, settings.http.port
    connection = http.client.HTTPConnection(_EVERYWHERE.get(host, host), port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/livez")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"port {port} does not answer: {error}")  # noqa: T201
        return 1
    finally:
        connection.close()
    print(f"/livez on port {port}: {status}")  # noqa: T201
    return 0 if status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
