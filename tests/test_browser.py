"The notebooks in JupyterLab, in a real browser: run, edited, saved, and what `dvc repro` then does."

import json
import os
import socket
import subprocess
import time
import urllib.request

import pandas as pd
import pytest
import torch
import torchvision
from conftest import BROWSER
from PIL import Image
from test_cli import dilo

from dilo.data import render_world

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
TOKEN = "token-of-this-test"


@pytest.fixture(scope="module")
def lab(smoke, tmp_path_factory):
    "The address of a JupyterLab whose root is the clone in which the smoke profile has run."
    settings = tmp_path_factory.mktemp("settings")
    tracker = settings / "@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text('{"windowingMode": "none"}')  # else cells out of sight are not in the page
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    options = [f"--port={port}", f"--IdentityProvider.token={TOKEN}", "--no-browser", "--allow-root"]
    process = subprocess.Popen(
        ["jupyter", "lab", *options, "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"],
        cwd=smoke.folder,
        env=smoke.env | {"JUPYTERLAB_SETTINGS_DIR": str(settings)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    for _ in range(480):
        try:
            urllib.request.urlopen(f"{address}/api", timeout=5)
            break
        except OSError:
            assert process.poll() is None, "JupyterLab ended"
            time.sleep(0.5)
    yield address
    process.terminate()
    process.wait()


def open_notebook(page, lab, path):
    page.goto(f"{lab}/lab/tree/{path}?reset&token={TOKEN}")
    page.locator(".jp-NotebookPanel:visible .jp-Cell").first.wait_for()
    for _ in range(960):  # until its kernel is there: asked to run before, JupyterLab asks which kernel it should be
        with urllib.request.urlopen(f"{lab}/api/sessions?token={TOKEN}", timeout=30) as answer:
            if any(s["path"] == path and s["kernel"]["connections"] for s in json.load(answer)):
                break
        time.sleep(0.25)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]:visible").wait_for()


def save(page, file):
    before = file.stat().st_mtime_ns
    page.keyboard.press("Control+s")
    for _ in range(480):
        if file.stat().st_mtime_ns != before:
            return json.loads(file.read_text())["cells"]
        time.sleep(0.25)
    raise AssertionError(f"{file} was not saved")


def run_all(page, file):
    "Runs every cell of the notebook in sight; what is then saved."
    panel = page.locator(".jp-NotebookPanel:visible")
    prompts = panel.locator(".jp-CodeCell .jp-InputPrompt")
    deadline = asked = time.monotonic()
    while True:
        told, now = [text.strip("[]: \n") for text in prompts.all_inner_texts()], time.monotonic()
        if all(text.isdigit() for text in told):
            break
        if "*" not in told and now >= asked:  # nothing runs or waits: asked while the kernel connected, it does not hear all
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_text("Run All Cells", exact=True).click()
            asked = now + 10
        failed = panel.locator("[data-mime-type='application/vnd.jupyter.stderr'] pre:has-text('Traceback')")
        assert failed.count() == 0, failed.first.inner_text()
        assert now < deadline + 240, told
        time.sleep(0.5)
    return save(page, file)


def errors(cells):
    return [out["evalue"] for c in cells for out in c.get("outputs", []) if out["output_type"] == "error"]


@pytest.mark.parametrize("path", ["nbs/training/methods/06_scene.ipynb", "nbs/stages/raw.ipynb"])
def test_notebooks_run_in_jupyterlab(smoke, lab, page, path):
    open_notebook(page, lab, path)
    cells = run_all(page, smoke.folder / path)
    code = [c for c in cells if c["cell_type"] == "code"]
    assert errors(cells) == [] and all(c["execution_count"] for c in code)
    assert any(c["outputs"] for c in code)
    ran = smoke.stages_run("repro")
    assert set(ran) <= {"export", "source"}, ran  # it ran and was saved, which changes nothing
    smoke.run("git", "checkout", path)
    smoke.stages_run("repro")


def test_an_edited_cell_reruns_what_depends_on_it(smoke, lab, page):
    path = "nbs/evaluation/03_diagnosis.ipynb"
    open_notebook(page, lab, path)
    cell = page.locator(".jp-NotebookPanel:visible .jp-CodeCell", has_text="def neighbours(").first
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+End")
    page.keyboard.press("Enter")
    page.keyboard.type("# edited in the browser")
    cells = save(page, smoke.folder / path)
    assert sum("# edited in the browser" in "".join(c["source"]) for c in cells) == 1
    ran = smoke.stages_run("repro")
    assert sorted(ran) == ["evaluate@dilo-0", "evaluate@moco-0", "export", "report", "results", "transfer"], ran
    assert "# edited in the browser" in (smoke.folder / "dilo/evaluation/diagnosis.py").read_text()
    smoke.run("git", "checkout", path)
    assert "export" in smoke.stages_run("repro")


def test_the_explorer_follows_its_widgets(smoke, lab, page, tmp_path):
    path = "nbs/tutorials/06_explorer.ipynb"
    open_notebook(page, lab, path)
    cells = run_all(page, smoke.folder / path)
    assert errors(cells) == [] and "widgets" not in json.loads((smoke.folder / path).read_text())["metadata"]
    panel = page.locator(".jp-NotebookPanel:visible")
    picture, line = panel.locator("img.widget-image"), panel.locator(".widget-label:not(label)").last
    choice = {name: panel.get_by_label(name, exact=True) for name in ("photo", "method", "recipe", "encoder")}
    seen = set()

    def another():
        "Waits for a picture that was not there yet; its width over its height."
        digest = """async img => {
            await img.decode();
            const sum = await crypto.subtle.digest("SHA-256", await (await fetch(img.src)).arrayBuffer());
            return [[...new Uint8Array(sum)].join(), img.naturalWidth / img.naturalHeight];
        }"""
        for _ in range(480):
            told, shape = picture.evaluate(digest)
            if told not in seen:
                seen.add(told)
                return shape
            time.sleep(0.25)
        raise AssertionError("the picture is as it was")

    shape = another()
    assert choice["encoder"].input_value() == "runs/dilo-0/encoder.safetensors"  # the pipeline has left it
    choice["method"].select_option("mb")
    assert another() == shape
    choice["recipe"].select_option("multi_crop")
    assert another() < shape  # eight views
    choice["encoder"].select_option("none")
    another()

    def upload(name, content):
        with page.expect_file_chooser() as chooser:
            panel.get_by_role("button", name="your photo").click()
        (tmp_path / name).write_bytes(content)
        chooser.value.set_files(tmp_path / name)

    upload("broken.jpg", b"no photo")
    # exact: the source of the assertion that quotes it may be on the page as well
    panel.get_by_text("broken.jpg: cannot be read as a photo (its format is not known)", exact=True).wait_for()
    upload("mine.png", (smoke.folder / "nbs/images/picture_0.png").read_bytes())
    another()
    assert choice["photo"].input_value() == "mine.png" and line.inner_text().strip() == ""
    assert panel.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert panel.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
    smoke.run("git", "checkout", path)


def test_the_report_reads_well(smoke, page):
    "Opens the page from the disk as a reader does: on a desk and on a phone, light and dark."
    told, asked = [], []
    page.goto("about:blank")  # an open JupyterLab asks its server now and then
    page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    file = smoke.folder / "reports/index.html"
    grounds = set()
    for width, scheme in ((1280, "light"), (390, "dark")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        page.goto(file.as_uri())
        assert page.locator("h1").count() == 1 and page.locator("table").count() >= 5
        whole = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
        assert len(whole) >= 6 and all(whole)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"too wide for {width} px"
        assert page.evaluate("[...document.images].every(i => i.alt.length > 10)")
        assert page.locator("figure").count() >= 8 and page.locator("figure").count() == page.locator("img").count()
        told_by = "[...document.querySelectorAll('figure')].every(f => f.querySelector('figcaption a[download]'))"
        assert page.evaluate(told_by)
        assert page.locator("nav a").count() == page.locator("h2").count() >= 9
        assert page.evaluate("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")
        grounds.add(page.evaluate("getComputedStyle(document.body).color"))
    page.keyboard.press("Tab")  # whoever has no mouse: first past the list of sections, then through what can be scrolled
    assert page.evaluate("document.activeElement.hash") == "#main"
    regions = page.locator("[role=region]")
    assert regions.count() >= 8 and all(label for label in regions.evaluate_all("all => all.map(r => r.ariaLabel)"))
    assert all(index == 0 for index in regions.evaluate_all("all => all.map(r => r.tabIndex)"))
    with page.expect_download() as download:
        page.get_by_label("CSV of: Linear probe by split of the backgrounds challenge").click()
    frame = pd.read_csv(download.value.path())
    assert set(frame.recipe) == {"moco", "dilo"} and frame.accuracy.between(-1, 1).all() and len(frame) == 18
    assert told == [] and {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert len(grounds) == 2 and os.path.getsize(file) < 5_000_000


def test_the_page_of_neighbours_reads_well(page, tmp_path):
    "Two encoders of other libraries on a folder of photos; on a desk and on a phone, by keyboard alone."
    world = render_world(120, size=48)
    for i, (image, label) in enumerate(zip(world.images, world.labels)):
        if label < 4:
            place = tmp_path / f"photos/kind {label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(place / f"a photo with a rather long name, number {i:03}.png")
    for name in ("one.pth", "other.pth"):
        torch.save(torchvision.models.resnet18().state_dict(), tmp_path / name)
    command = ["neighbours", "photos", "--weights", "one.pth", "--against", "other.pth", "--size", "64", "--shown", "6"]
    said, _ = dilo(*command, "--out", "page.html", cwd=tmp_path)
    assert "it needs no network" in said and os.path.getsize(tmp_path / "page.html") < 2_000_000
    told, asked = [], []
    page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        page.goto((tmp_path / "page.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"too wide for {width} px"
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt.length > 5)")
        assert page.locator("figure").count() == 6 * 2 * (5 + 1) and page.locator("svg[role=img]").count() == 2
        assert page.locator("svg[role=img] circle").count() == 2 * 48
        shown = page.locator(".plain").first, page.locator(".active").first
        assert shown[0].is_visible() and not shown[1].is_visible()
        for _ in range(12):  # by the keyboard alone
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "look":
                break
        page.keyboard.press("Space")
        assert shown[1].is_visible() and not shown[0].is_visible()
        page.keyboard.press("Space")
        assert shown[0].is_visible()
    columns = "getComputedStyle(document.querySelector('.sides')).gridTemplateColumns.split(' ').length"
    assert page.evaluate(columns) == 1, "one below the other on a phone"
    page.set_viewport_size({"width": 1280, "height": 800})
    assert page.evaluate(columns) == 2, "side by side on a desk"
    assert told == [] and {url.split(":")[0] for url in asked} <= {"file", "data"}
    (tmp_path / "mine.html").write_text("<p>mine")
    assert "did not write it" in dilo(*command, "--out", "mine.html", status=2, cwd=tmp_path)[1]
