"""What `helm test` asks: does the listener answer a C-ECHO, and is every other role ready?

LISTENER:PORT CALLED-AE CALLING-AE URL…; status 0, or 1 and what does not answer.
"""

import sys
import urllib.error
import urllib.request

from pynetdicom import AE

_VERIFICATION = "1.2.840.10008.1.1"
_SECONDS = 10


def echo(address: str, called: str, calling: str) -> str:
    """Empty, or what is wrong."""
    host, port = address.rsplit(":", 1)
    node = AE(ae_title=calling)
    node.acse_timeout = node.dimse_timeout = node.network_timeout = node.connection_timeout = _SECONDS
    node.add_requested_context(_VERIFICATION)
    association = node.associate(host, int(port), ae_title=called)
    if not association.is_established:
        return "takes no association"
    answer = association.send_c_echo()
    association.release()
    status = getattr(answer, "Status", None)
    return "" if status == 0 else f"answers C-ECHO with {status if status is None else hex(status)}"


def ask(url: str) -> str:
    """Empty, or what is wrong."""
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS):  # noqa: S310 - the chart's own addresses
            return ""
    except (OSError, urllib.error.URLError) as error:
        return f"is not ready: {error}"


def main(listener: str, called: str, calling: str, *urls: str) -> int:
    """Ask everybody, and say of each how it is."""
    said = {listener: echo(listener, called, calling)} | {url: ask(url) for url in urls}
    for address, wrong in said.items():
        print(f"{address} {wrong or 'is well'}")  # noqa: T201
    return int(any(said.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
