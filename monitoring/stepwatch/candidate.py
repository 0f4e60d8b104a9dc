"""Makes a candidate: by a program of the site's, by a Kubernetes Job, or by telling another system."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit

import yaml

from stepwatch.errors import WatchError
from stepwatch.requests import Request
from stepwatch.settings import Retrain

OUTPUT_BYTES = 65_536  # of what a program says that are kept: the last ones
_CHUNK = 4096
_VERIFY_SECONDS = 1800.0
_WEBHOOK_SECONDS = 30.0


class CandidateError(WatchError):
    """No candidate came of it; says why."""


def package_of(folder: Path) -> Path:
    """The package in a release's folder: the folder itself, or ``package`` in it where a policy lies beside it."""
    return folder if (folder / "model.yaml").is_file() else folder / "package"


def name_in(package: Path) -> str:
    """The name of the model in a package's folder; empty if that cannot be read."""
    try:
        return str(yaml.safe_load((package / "model.yaml").read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return ""


def policy_of(folder: Path) -> Path | None:
    """The policy that a release's folder brings along."""
    file = folder / "policy.yaml"
    return file if file.is_file() else None


def digest_of_policy(release: Path) -> str:
    """SHA-256 of the policy that a release's folder brings along; empty if it brings none."""
    file = policy_of(release)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file else ""


def require_unchanged(made: Mapping[str, Any], settings: Retrain) -> None:
    """Raises WatchError unless a candidate, package and policy, still is what its run made (``made``)."""
    release = Path(made["release"])
    if verify(package_of(release), settings.trusted_keys)["digest"] != made["digest"]:
        raise WatchError(f"{release}: is not the package that the run made; decline the request")
    if digest_of_policy(release) != made.get("policy", ""):
        raise WatchError(f"{release}: its policy.yaml is not the one that the run's candidate had; decline the request")


def write_request(request: Request, folder: Path) -> Path:
    """Write what a program has to know as JSON: the request's name, its contents and who approved it; the file."""
    approved = request.last("approved")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "request.json"
    contents = {
        "request": request.request,
        **{key: value for key, value in request.opened.body.items() if key != "previous"},
        "approved_by": approved.who if approved else "",
    }
    file.write_text(json.dumps(contents, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def run_program(settings: Retrain, request_file: Path, candidate: Path) -> None:
    """Run the site's program, without a shell; what it says last is kept in ``output.log`` beside the candidate.

    Raises
    ------
    CandidateError
        If it cannot be started, fails, or takes longer than it may. Nothing that it started is left running.
    """
    candidate.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"REQUEST_FILE": str(request_file), "CANDIDATE_DIR": str(candidate)}
    try:
        process = subprocess.Popen(  # noqa: S603 - the site's own setting
            settings.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise CandidateError(f"{settings.command[0]}: cannot be started: {error.strerror}") from None
    kept: deque[bytes] = deque(maxlen=OUTPUT_BYTES // _CHUNK)
    reader = threading.Thread(target=_keep, args=(process, kept), daemon=True)
    reader.start()
    late = False
    try:
        process.wait(settings.timeout_seconds)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        # Also what it left behind in the background.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(5)
        output = b"".join(kept)
        (candidate.parent / "output.log").write_bytes(output)
    if late:
        raise CandidateError(f"the program had not ended after {settings.timeout_seconds:g} s, and was ended")
    if process.returncode:
        lines = output.decode(errors="replace").strip().splitlines()
        said = f": {lines[-1][:300]}" if lines else ""
        raise CandidateError(f"the program failed with status {process.returncode}{said}")


def _keep(process: subprocess.Popen[bytes], kept: deque[bytes]) -> None:
    assert process.stdout is not None  # it is a pipe
    with process.stdout as stream:
        while chunk := os.read(stream.fileno(), _CHUNK):
            kept.append(chunk)


def verify(package: Path, trusted: list[Path] | None = None) -> dict[str, Any]:
    """What ``stepwedge package verify`` says of a package. Raises CandidateError if it does not verify."""
    command = [sys.executable, "-m", "stepwedge", "package", "verify", str(package), "--json", "--device", "cpu"]
    for key in trusted or ():
        command += ["--trusted", str(key)]
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            command, capture_output=True, text=True, timeout=_VERIFY_SECONDS, check=False
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise CandidateError(f"{package}: verifying it took more than {_VERIFY_SECONDS:g} s") from None
    except ValueError:
        raise CandidateError(f"{package}: does not verify: {done.stderr.strip()[-500:]}") from None
    if not found.get("valid"):
        raise CandidateError(f"{package}: does not verify: {found.get('error')}")
    return found


def tell(settings: Retrain, request_file: Path, *, now: float | None = None) -> None:
    """Send an approved request to another system, signed.

    The header ``X-Stepwatch-Timestamp`` holds seconds since 1970; ``X-Stepwatch-Signature`` is ``sha256=`` and the
    hexadecimal HMAC-SHA256 of ``<timestamp>.<body>`` by the shared secret. A receiver refuses old timestamps.

    Raises
    ------
    CandidateError
        If there is no secret, or the system does not take the message.
    """
    url = settings.webhook_url or ""
    if urlsplit(url).scheme not in ("http", "https"):
        raise CandidateError(f"retrain.webhook_url: {url}: wanted an address with http or https")
    if settings.webhook_key_file is None:
        raise CandidateError("retrain.webhook_key_file names no secret: the message would not be signed")
    try:
        secret = settings.webhook_key_file.read_bytes().strip()
    except OSError as error:
        raise CandidateError(f"{settings.webhook_key_file}: cannot be read: {error.strerror}") from None
    body = request_file.read_bytes()
    stamp = str(int(now if now is not None else time.time()))
    headers = {
        "Content-Type": "application/json",
        "X-Stepwatch-Timestamp": stamp,
        "X-Stepwatch-Signature": "sha256=" + hmac.new(secret, stamp.encode() + b"." + body, hashlib.sha256).hexdigest(),
    }
    message = urllib.request.Request(url, data=body, headers=headers, method="POST")  # noqa: S310 - checked above
    try:
        with urllib.request.urlopen(message, timeout=_WEBHOOK_SECONDS):  # noqa: S310 - checked above
            return
    except (URLError, OSError) as error:
        raise CandidateError(f"{url}: did not take the request: {getattr(error, 'reason', error)}") from None


def job_manifest(settings: Retrain, name: str, run: Path, *, image: str, volume: str) -> dict[str, Any]:
    """A Kubernetes Job that runs the same program.

    The claim ``volume`` is of the volume that the monitor keeps its folder ``requests`` on; ``run`` is the run's folder
    in it.
    """
    folder = f"/retrain/{run.as_posix()}"
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"stepwatch-retrain-{name}"},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": max(1, int(settings.timeout_seconds)),
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [
                        {
                            "name": "retrain",
                            "image": image,
                            "command": settings.command,
                            "env": [
                                {"name": "REQUEST_FILE", "value": f"{folder}/request.json"},
                                {"name": "CANDIDATE_DIR", "value": f"{folder}/candidate"},
                            ],
                            "volumeMounts": [{"name": "retrain", "mountPath": "/retrain"}],
                        }
                    ],
                    "volumes": [{"name": "retrain", "persistentVolumeClaim": {"claimName": volume}}],
                }
            },
        },
    }
