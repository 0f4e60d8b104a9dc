"""A real Chromium, with scripts off, over the page of a real service: every state is seen with its reason, and what a
button promises happens."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pydicom
import pytest
import yaml
from browser import SCHEMES, SIZES, chromium, faults, opened, pictures, press
from peers import Orthanc, free_ports
from playwright.sync_api import Browser, Page
from sender import make_study, send, send_once

from service import Service, destination, settings_for, until

MODELS = Path(__file__).parents[2] / "models" / "chest-pneumonia"
SIMULATED = 9
PAGES = ("/", "/wall", "/studies", "/studies?state=deferred", "/quarantine", "/model", "/drift", "/actions")


@dataclass
class Scene:
    """A running service, and what was sent to it. Studies by their names here; ``uids`` by what became of them."""

    service: Service
    base: str
    uids: dict[str, str]
    secrets: set[str]  # what no page and no log may hold

    def name(self, what: str) -> str:
        with self.service.store() as store:
            found = store.study_by_uid(self.uids[what])
        assert found is not None
        return found.study

    def state(self, what: str) -> tuple[str, tuple[str, ...]]:
        with self.service.store() as store:
            units = store.units(study=self.name(what))
        return (str(units[-1].state), units[-1].reasons) if units else ("", ())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    watch_port, unused = free_ports(2)
    (folder / "service").mkdir()
    (folder / "service" / "stepwatch.yaml").write_text(
        yaml.safe_dump({"http": {"port": watch_port}, "detection": {"poll_seconds": 0.2}})
    )
    with Orthanc.started(folder) as pacs:
        values = settings_for(
            MODELS / "1.1.0", MODELS / "policy.yaml",
            [destination(pacs.dicom_port), destination(unused, name="ward", demonstration=False)],
            # A second content of an instance is refused, until somebody changes that.
            spool={"instance_versions": 1},
            watch={"enabled": True, "config": "stepwatch.yaml", "url": f"http://127.0.0.1:{watch_port}"},
        )  # fmt: skip
        service = Service(folder / "service", values)
        service.start()
        try:
            scene = Scene(service, f"http://127.0.0.1:{service.settings.http.port}", {}, set())
            _send_everything(scene, folder / "studies")
            yield scene
        finally:
            status = service.stop()
        assert status == 0


def _send_everything(scene: Scene, folder: Path) -> None:
    """Studies for every state, each sent as a PACS would, and the wait for what becomes of them."""
    service, port = scene.service, scene.service.settings.node.port
    subprocess.run(
        [sys.executable, "-m", "stepwedge", "simulate", "--out", str(folder), "--studies", str(SIMULATED)],
        check=True, capture_output=True,
    )  # fmt: skip
    files = sorted(folder.rglob("*.dcm"))
    headers = {file: pydicom.dcmread(file) for file in files}
    for header in headers.values():
        scene.secrets |= {str(header.StudyInstanceUID), str(header.SOPInstanceUID), str(header.PatientID)}
    for what, file in zip(("ageless", "cut", "altered", "twice"), files, strict=False):
        scene.uids[what] = str(headers[file].StudyInstanceUID)
    scene.uids["plain"] = str(headers[files[4]].StudyInstanceUID)
    ageless, cut = headers[files[0]], headers[files[1]]
    for keyword in ("PatientAge", "PatientBirthDate"):
        if keyword in ageless:
            delattr(ageless, keyword)
    ageless.save_as(files[0], enforce_file_format=True)
    cut.PixelData = cut.PixelData[: len(cut.PixelData) // 2]
    cut.save_as(files[1], enforce_file_format=True)
    for file in (*files[:2], *files[3:]):
        send(port, file)
    until(lambda: _ended(service) == SIMULATED - 1, "all but one have ended", service)
    # While the worker holds still, an image changes on disk.
    worker = service.pid("work")
    os.kill(worker, signal.SIGSTOP)
    try:
        send(port, files[2])
        (kept,) = (service.settings.data_dir / "spool" / "studies").glob(f"??/{scene.name('altered')}/*.dcm")
        contents, times = kept.read_bytes(), kept.stat()
        kept.write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
    finally:
        os.kill(worker, signal.SIGCONT)
    until(lambda: scene.state("altered")[0] == "failed", "the altered one has failed", service)
    kept.write_bytes(contents)  # somebody has mended it
    os.utime(kept, ns=(times.st_atime_ns, times.st_mtime_ns))
    twice = headers[files[3]]
    pixels = bytearray(twice.PixelData)
    pixels[len(pixels) // 2] ^= 1
    twice.PixelData = bytes(pixels)
    twice.save_as(files[3], enforce_file_format=True)
    assert send_once(port, files[3]) == 0xC000
    until(lambda: _delivered(service) >= SIMULATED - 2, "what was answered for is delivered", service)
    until(lambda: _watching(service), "the monitor answers", service)


def _ended(service: Service) -> int:
    with service.store() as store:
        return sum(unit.ended_at is not None for unit in store.units())


def _delivered(service: Service) -> int:
    with service.store() as store:
        return sum(item.state == "delivered" for item in store.deliveries())


def _watching(service: Service) -> bool:
    try:
        said = httpx.get(f"{service.settings.watch.url}/status.json", timeout=10).json()
    except (httpx.HTTPError, ValueError):
        return False
    return bool(said["models"]) and said["models"][0]["studies"] > 0


def _text(page: Page) -> str:
    return re.sub(r"\s+", " ", page.locator("main").inner_text())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_every_page_reads_well_on_a_wall_and_on_a_phone_by_day_and_by_night(
    scene: Scene, browser: Browser, artefacts: Path, size: str, scheme: str
) -> None:
    found = {}
    studies = [f"/studies/{scene.name(what)}" for what in ("ageless", "altered")]
    with opened(browser, scene.base, size, scheme) as page:
        for path in (*PAGES, *studies, "/studies/none"):
            answer = page.goto(path)
            assert answer is not None
            assert answer.status == (404 if path == "/studies/none" else 200), path
            title = path.strip("/").replace("/", "-").replace("?state=", "-")
            title = {"": "overview", studies[0][1:].replace("/", "-"): "study-deferred"}.get(title, title)
            title = "study-failed" if path == studies[1] else title
            page.screenshot(path=artefacts / f"page-{title}-{size}-{scheme}.png", full_page=size == "phone")
            found[path] = faults(page)
            if path == "/wall" and size == "wall":
                assert page.evaluate("document.documentElement.scrollHeight") <= SIZES["wall"][1], "the wall scrolls"
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


def test_the_overview_names_what_runs_what_is_in_use_and_what_to_look_at(scene: Scene, browser: Browser) -> None:
    with opened(browser, scene.base) as page:
        page.goto("/")
        text = _text(page)
        for wanted in (
            "Something needs a person", "1 failed", "DICOM node Ready", "Worker worker-1 Ready", "Monitor Ready",
            "chest-pneumonia 1.1.0", "Demonstration – not for clinical use", "Runs on CPU", "Oldest has waited",
            "No change beyond the ordinary", "1 refused object in quarantine",
        ):  # fmt: skip
            assert wanted.lower() in text.lower(), wanted
        page.goto("/model")
        text = _text(page)
        told = httpx.get(f"http://127.0.0.1:{scene.service.settings.inference.port}/v1/models", timeout=10).json()
        assert told[0]["digest"] in text
        assert "Signer" in text


def test_a_study_tells_its_way_with_times_and_reasons_in_words(scene: Scene, browser: Browser) -> None:
    with opened(browser, scene.base, "phone") as page:
        page.goto("/studies?state=deferred")
        press(page, page.get_by_role("link", name=scene.name("ageless")[:12]))
        text = _text(page)
        steps = [
            "First image received",
            "Complete",
            "Analysed",
            "Deferred",
            "To pacs",
            "Delivered",
            "To ward",
            "Withheld",
        ]
        places = [text.find(step, text.find("Its way")) for step in steps]
        assert places == sorted(places), text
        assert min(places) > 0
        assert "The header gives no usable age or birth date, and the intended use needs it age_missing" in text
        assert "demonstration results do not go there" in text
        assert len(page.locator(".way time").all()) >= 5
        page.goto("/studies?state=rejected")
        assert "The pixel data is shorter than the header says" in _text(page)


def test_a_study_is_found_by_its_uid_and_the_uid_is_nowhere_after(scene: Scene, browser: Browser) -> None:
    with opened(browser, scene.base) as page:
        for wanted, given in ((scene.name("plain"), scene.uids["plain"]), (scene.name("cut"), scene.name("cut")[:8])):
            page.goto("/studies")
            page.get_by_label("Find a study").fill(given)
            press(page, page.get_by_label("Find a study"), "Enter")
            assert page.url.endswith(f"/studies/{wanted}")
        page.goto("/studies")
        page.get_by_label("Find a study").fill("1.2.3.4.5.6.7.8.9")
        press(page, page.get_by_role("button", name="Find"))
        assert "no study with that UID" in _text(page)
        assert "1.2.3.4.5.6.7.8.9" not in page.content()


def test_a_failed_study_is_tried_again_by_its_button(scene: Scene, browser: Browser, artefacts: Path) -> None:
    assert scene.state("altered") == ("failed", ("altered_after_receipt",))
    with opened(browser, scene.base) as page:
        page.goto("/studies?state=failed")
        press(page, page.get_by_role("link", name=scene.name("altered")[:12]))
        assert "The pixel data is not what was received" in _text(page)
        press(page, page.get_by_role("button", name="Try again"))
        assert "Put back into the queue" in _text(page)
        until(lambda: scene.state("altered")[0] in ("reported", "deferred"), "it was analysed again", scene.service)
        page.reload()
        assert "tried again 1 time" in _text(page)
        assert "this-machine put back into the queue" in _text(page)
        page.screenshot(path=artefacts / "page-study-retried-wall-light.png")
        page.goto("/actions")
        assert "this-machine" in _text(page)
    (said,) = [event for event in scene.service.events("page_action") if event["action"] == "retry"]
    assert (said["who"], said["outcome"]) == ("this-machine", "done")


def test_a_refused_object_is_released_once_what_kept_it_out_is_mended(
    scene: Scene, browser: Browser, artefacts: Path
) -> None:
    service = scene.service
    with opened(browser, scene.base, "phone", "dark") as page:
        page.goto("/quarantine")
        assert "sent with different content too often" in _text(page)
        press(page, page.get_by_role("button", name="Release"))
        until(lambda: page.reload() and "Refused release asked for by this-machine" in _text(page), "refused", service)
        assert "The instance was sent with different content too often" in _text(page)
        page.screenshot(path=artefacts / "page-quarantine-refused-phone-dark.png", full_page=True)
        assert service.stop() == 0
        values = yaml.safe_load(service.file.read_text())
        values["spool"]["instance_versions"] = 5
        service.file.write_text(yaml.safe_dump(values))
        service.start()
        page.goto("/quarantine")
        press(page, page.get_by_role("button", name="Release"))
        until(lambda: page.goto("/quarantine") and "Nothing is in quarantine" in _text(page), "it is let in", service)
    until(lambda: _revision(scene) == 2 and scene.state("twice")[0] in ("reported", "deferred"), "it counts", service)
    done = [(event["action"], event["who"]) for event in service.events("request_done")]
    assert done == [("release", "this-machine")]
    assert list((service.settings.data_dir / "spool" / "quarantine").iterdir()) == []


def test_an_object_is_discarded_in_a_second_step_that_says_what_it_does(
    scene: Scene, browser: Browser, artefacts: Path, tmp_path: Path
) -> None:
    service, file = scene.service, make_study(tmp_path, 1).file
    folder = service.settings.data_dir / "spool" / "quarantine"
    others = set(folder.iterdir())
    dataset = pydicom.dcmread(file)
    del dataset.SeriesInstanceUID
    dataset.save_as(file)
    assert send_once(service.settings.node.port, file) == 0xC000
    for size, scheme in itertools.product(SIZES, SCHEMES):
        with opened(browser, scene.base, size, scheme) as page:
            page.goto("/quarantine")
            card = page.locator("li.sheet", has_text="bad_uid")
            for_good = card.get_by_role("button", name="Discard for good")
            assert not for_good.is_visible()
            card.locator("summary").press("Enter")
            assert for_good.is_visible()
            assert "Deletes the kept object. Only its sender can send it again." in _text(page)
            assert faults(page) == []
            page.screenshot(path=artefacts / f"page-quarantine-discard-{size}-{scheme}.png", full_page=size == "phone")
    assert len(set(folder.glob("*.dcm")) - others) == 1, "to look is not to do"
    with opened(browser, scene.base) as page:
        page.goto("/quarantine")
        card = page.locator("li.sheet", has_text="bad_uid")
        card.get_by_text("Discard…").click()
        press(page, card.get_by_role("button", name="Discard for good"))
        until(lambda: page.goto("/quarantine") and "bad_uid" not in _text(page), "it is gone", service)
    assert set(folder.iterdir()) == others
    assert [event["action"] for event in service.events("request_done")][-1] == "discard"


def _revision(scene: Scene) -> int:
    with scene.service.store() as store:
        found = store.study_by_uid(scene.uids["twice"])
    return found.revision if found else 0


def test_with_the_keyboard_the_content_is_one_step_away_and_nothing_refreshes_over_what_is_typed(
    scene: Scene, browser: Browser
) -> None:
    with opened(browser, scene.base) as page:
        page.goto("/studies")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "To the content"
        assert page.locator("meta[http-equiv=refresh]").count() == 0
        page.goto("/")
        assert page.locator("meta[http-equiv=refresh]").count() == 1
        assert page.locator("main input:not([type=hidden])").count() == 0
        page.goto("/?refresh=off")
        assert page.locator("meta[http-equiv=refresh]").count() == 0


def test_evidentlys_report_is_shown_behind_glass(scene: Scene, browser: Browser) -> None:
    drawn = scene.service.settings.data_dir / "watch" / "pages" / "2026-01-01-test.html"
    drawn.parent.mkdir(parents=True, exist_ok=True)
    drawn.write_text("<!doctype html><title>drawn</title><p>a report</p>")
    answer = httpx.get(f"{scene.base}/reports/{drawn.name}")
    assert answer.status_code == 200
    assert "a report" in answer.text
    assert answer.headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")
    assert httpx.get(f"{scene.base}/reports/none.html").status_code == 404
    drawn.unlink()


def test_no_page_and_no_line_of_the_log_names_a_patient(scene: Scene, browser: Browser) -> None:
    with opened(browser, scene.base) as page:
        for path in (*PAGES, *(f"/studies/{scene.name(what)}" for what in scene.uids)):
            page.goto(path)
            content = page.content()
            assert [secret for secret in scene.secrets if secret in content] == []
    log = scene.service.log()
    assert [secret for secret in scene.secrets if secret in log] == []
    assert "page_failed" not in log
