"""A real OpenID provider, Canaille, in a process of its own: ``python openid_provider.py PORT REDIRECT``.

Its people: ``ann`` of the group ``radiology-it``, ``bob`` of ``leads``, ``eve`` of none; the password of each is
``PASSWORD``.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from peers import free_ports

PASSWORD = "correct horse battery staple"
CLIENT, SECRET = "stepwedge-page", "a-secret-between-the-page-and-its-provider"
PEOPLE = {"ann": "radiology-it", "bob": "leads", "eve": ""}


@contextmanager
def provider(redirect: str, folder: Path) -> Iterator[str]:
    """Run it; its address."""
    (port,) = free_ports(1)
    with (folder / "provider.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, str(port), redirect], stdout=log, stderr=log, cwd=folder
        )  # fmt: skip
    base = f"http://localhost:{port}"
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                httpx.get(f"{base}/.well-known/openid-configuration", timeout=10).raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > deadline:
                    said = (folder / "provider.log").read_text(errors="replace")[-3000:]
                    raise AssertionError(f"the provider did not start:\n{said}") from None
                time.sleep(0.2)
        yield base
    finally:
        process.terminate()
        process.wait(30)


def serve(port: int, redirect: str) -> None:
    warnings.simplefilter("ignore")
    from canaille import create_app
    from cryptography.hazmat.primitives.asymmetric import rsa
    from joserfc.jwk import RSAKey
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    pem = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    key = RSAKey.import_key(pem).as_dict(private=True)
    app = create_app(
        {
            "SECRET_KEY": "only-for-this-test",
            "SERVER_NAME": f"localhost:{port}",
            "PREFERRED_URL_SCHEME": "http",
            "CANAILLE": {"DATABASE": "memory", "ENABLE_REGISTRATION": False},
            "CANAILLE_OIDC": {"ACTIVE_JWKS": [json.loads(json.dumps(key))]},
        }
    )
    with app.app_context():
        from canaille.app import models
        from canaille.backends import Backend

        backend = Backend.instance
        with backend.session():
            groups = {}
            for name, group in PEOPLE.items():
                user = models.User(
                    formatted_name=name, family_name=name, user_name=name, emails=[f"{name}@example.org"],
                    password=PASSWORD,
                )  # fmt: skip
                backend.save(user)
                if group:
                    groups[group] = models.Group(display_name=group, members=[user])
                    backend.save(groups[group])
            client = models.Client(
                client_id=CLIENT, client_secret=SECRET, client_name="Stepwedge",
                client_uri=redirect.partition("/sign-in")[0],
                redirect_uris=[redirect], grant_types=["authorization_code"], response_types=["code"],
                scope=["openid", "profile", "groups"], token_endpoint_auth_method="client_secret_basic",
            )  # fmt: skip
            backend.save(client)
            client.audience = [client]
            backend.save(client)
    make_server("127.0.0.1", port, app, threaded=True).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
