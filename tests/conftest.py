"Fresh clones of this project to run the pipeline in, and a browser."

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# for processes of their own: what getrusage says on Linux counts the process that started them, too
PEAK = """
def peak():
    "The most memory of this process, KiB."
    import os, resource, sys
    if os.path.exists("/proc/self/status"):
        return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
"""
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Project:
    "A clone of the project in a folder of its own, and commands run in it."

    def __init__(self, folder):
        self.folder = folder
        self.env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@example.org",
        }

    def run(self, *command, fails=False):
        "The output of a command; an AssertionError showing it where its exit status is not as expected."
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert (done.returncode != 0) == fails, (
            f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout[-6000:]}"
        )
        return done.stdout

    def stages_run(self, *command):
        "The names of the stages that a `dvc` command runs."
        lines = self.run("dvc", *command).splitlines()
        return [line.split("'")[1].removesuffix(".dvc") for line in lines if line.startswith("Running stage")]

    def edit(self, file, old, new):
        "Replaces text that must be there."
        path = self.folder / file
        text = path.read_text()
        assert old in text, f"{file} does not hold {old!r}"
        path.write_text(text.replace(old, new))


def clone(folder):
    "A `Project`: what git has committed, and the changes and new files that it would commit."
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-zmo", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    project = Project(folder)
    if project.run("git", "status", "--porcelain"):
        project.run("git", "add", "-A")
        project.run("git", "commit", "-qm", "working tree")
    return project


@pytest.fixture
def fresh(tmp_path):
    "A fresh clone."
    return clone(tmp_path / "dilo")


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    "A clone in which the smoke profile has run once, by the user's commands; tests leave it up to date."
    project = clone(tmp_path_factory.mktemp("smoke") / "dilo")
    project.run("python", "-m", "dilo.config", "smoke")
    project.first = project.run("dvc", "repro")
    return project


@pytest.fixture(scope="module")
def page():
    "A page of a headless Chromium."
    from playwright.sync_api import sync_playwright

    quiet = [f"--disable-{what}" for what in ("gpu", "quic", "background-networking", "component-update", "sync")]
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", *quiet])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(120_000)
        yield page
        browser.close()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items):
    "Tests that share what takes long to make run in one process, one after the other."
    for item in items:
        for shared in ("smoke", "site"):
            if shared in item.fixturenames:
                item.add_marker(pytest.mark.xdist_group(shared))
