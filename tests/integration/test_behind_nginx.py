"""The page behind a real nginx that speaks TLS, with the configuration that the operations manual gives."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from browser import chromium, opened, press
from certificates import authority
from page_served import HTML, Served, name_of, page, put
from peers import free_ports, require_tool
from starlette.routing import Route
from stepwedge.page.app import build_app
from stepwedge.page.tokens import make_token
from stepwedge.records import State

MANUAL = Path(__file__).parents[2] / "service" / "OPERATIONS.md"
FAILED = name_of(7)
GUESSES = 3
# One process, as whoever runs the tests, and every file in the test's own folder.
_ALONE = """
daemon off; master_process off; pid nginx.pid; error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    %s
}
"""


@dataclass(frozen=True)
class Behind:
    """A page that people reach through nginx only."""

    base: str
    served: Served
    trust: ssl.SSLContext
    token: str

    def client(self, address: str = "127.0.0.1") -> httpx.Client:
        """Somebody at an address of the loopback network."""
        transport = httpx.HTTPTransport(verify=self.trust, local_address=address)
        return httpx.Client(base_url=self.base, transport=transport, timeout=60)


@contextmanager
def nginx(folder: Path, server: str, port: int) -> Iterator[None]:
    folder.mkdir()
    (folder / "nginx.conf").write_text(_ALONE % server)
    command = [require_tool("nginx"), "-e", "stderr", "-p", str(folder), "-c", "nginx.conf"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not _listens(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "nginx does not listen"
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(60)


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def documented() -> str:
    """What the manual tells whoever puts nginx in front."""
    found = re.search(r"^```nginx\n(.*?)^```", MANUAL.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Behind]:
    """Set up as the manual says; only names, ports and files are this machine's."""
    (front,) = free_ports(1)
    token, entry = make_token("night shift", "operator")
    (tmp_path / "tokens.yaml").write_text(entry)
    ca, _ = authority(tmp_path)
    base = f"https://127.0.0.1:{front}"
    settings = {
        "url": base, "trusted_proxies": ["127.0.0.1"], "tokens_file": tmp_path / "tokens.yaml",
        "sign_ins_per_minute": GUESSES,
    }  # fmt: skip
    with page(tmp_path, page=settings) as served:
        put(served.store, FAILED, State.FAILED, reasons=("report_failed",))
        server = documented()
        for theirs, ours in (
            ("listen 443 ssl", f"listen 127.0.0.1:{front} ssl"),
            ("/etc/nginx/stepwedge.pem", str(tmp_path / "server.pem")),
            ("/etc/nginx/stepwedge.key", str(tmp_path / "server.pem")),
            ("http://127.0.0.1:8080", served.base),
        ):
            assert server.count(theirs) == 1, theirs
            server = server.replace(theirs, ours)
        with nginx(tmp_path / "nginx", server, front):
            yield Behind(base, served, ssl.create_default_context(cafile=str(ca)), token)


def _not_the_pages(served: Served) -> list[str]:
    """Whatever is answered on the page's port without belonging to it."""
    app = build_app({}, served.store, None, served.desk.settings.constancy)
    return [route.path for route in app.routes if isinstance(route, Route)]


def test_somebody_signs_in_over_tls_and_tries_a_study_again(behind: Behind) -> None:
    with chromium() as browser, opened(browser, behind.base, ignore_https_errors=True) as shown:
        shown.goto(f"/studies/{FAILED}")
        shown.get_by_label("Token").fill(behind.token)
        press(shown, shown.get_by_label("Token"), "Enter")
        assert shown.url == f"{behind.base}/studies/{FAILED}"
        press(shown, shown.get_by_role("button", name="Try again"))
        assert "Put back into the queue" in shown.locator("main").inner_text()
        (cookie,) = [each for each in shown.context.cookies() if each["name"] == "stepwedge_session"]
        assert (cookie["secure"], cookie["httpOnly"]) == (True, True)
    assert behind.served.store.units(study=FAILED)[0].state is State.QUEUED


def test_health_and_metrics_stay_inside(behind: Behind) -> None:
    with behind.client() as client:
        paths = _not_the_pages(behind.served)
        assert "/metrics" in paths
        for path in (*paths, "//metrics", "/%6detrics", "/metrics?name[]=up"):
            assert client.get(behind.base + path).status_code == 404, path
        assert client.get("/style.css").status_code == 200
    assert {behind.served.client.get(path).status_code for path in paths} <= {200, 503}


def test_limits_count_clients_and_not_the_proxy_whatever_they_say_of_themselves(behind: Behind) -> None:
    wrong = {"Authorization": "Bearer wrong"}
    with behind.client("127.0.0.2") as guesser, behind.client("127.0.0.3") as other:
        answers = [guesser.get("/", headers=wrong).status_code for _ in range(GUESSES + 1)]
        assert answers == [401] * GUESSES + [429]
        disguised = {**wrong, "X-Forwarded-For": "10.0.0.9"}
        assert guesser.get("/", headers=disguised).status_code == 429
        assert other.get("/", headers=wrong).status_code == 401


def test_under_a_name_that_is_not_the_pages_it_answers_nobody(behind: Behind) -> None:
    with behind.client() as client:
        answer = client.get("/", headers={**HTML, "Host": "evil.example"})
    assert answer.status_code == 421
    assert "page.url" in answer.text


def test_an_nginx_in_front_of_a_page_that_knows_nothing_of_it_opens_nothing(tmp_path: Path) -> None:
    (front,) = free_ports(1)
    with page(tmp_path) as served:
        bare = f"server {{ listen 127.0.0.1:{front}; location / {{ proxy_pass {served.base}; }} }}"
        with nginx(tmp_path / "nginx", bare, front):
            answer = httpx.get(f"http://127.0.0.1:{front}/", headers=HTML, timeout=60)
        assert served.get("/").status_code == 200
    assert answer.status_code == 403
    assert "a proxy hands on" in answer.text
