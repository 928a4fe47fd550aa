"The project itself: package and README are what the notebooks say, and the package needs its run-time dependencies alone."

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "nbs").rglob("[!.]*.ipynb"))
NOTEBOOKS = [n for n in NOTEBOOKS if ".ipynb_checkpoints" not in n.parts]
ROOMS = [
    "config",
    "files",
    "pictures",
    "data",
    "superpixels",
    "filters",
    "saliency_scores",
    "saliency",
    "saliency_torch",
    "saliency_maps",
    "saliency_net",
    "view_laws",
    "pixels",
    "view_kernels",
    "views",
    "augment",
    "preview",
    "models",
    "methods",
    "lewel",
    "scene",
    "optimise",
    "checkpoints",
    "feed",
    "train",
    "probes",
    "localise",
    "diagnose",
    "evaluate",
    "finetune",
    "photos",
    "figures",
    "ablations",
    "report",
    "handover",
    "workflow",
    "cli",
]


def test_package_and_readme_are_what_the_notebooks_say(fresh):
    fresh.run("nbdev_export")
    fresh.run("python", "-m", "dilo.workflow", "readme")
    assert fresh.run("git", "status", "--porcelain") == "", "run `make export` and commit"


def test_notebooks_are_clean(fresh):
    fresh.run("nbdev_clean")
    assert fresh.run("git", "status", "--porcelain") == "", "run `nbdev_clean` and commit"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_form(path):
    cells = json.loads(path.read_text())["cells"]
    assert path.stat().st_size < 1_000_000
    first = "".join(cells[0]["source"])
    assert re.match(r"# .+\n\n> .+", first), "a notebook starts with a title and a one-line summary"
    if path.parent.name == "stages":
        tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
        assert len(tagged) == 1, "papermill would ignore the parameters"
        code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        assert not re.search(r"^\s*(def|class|while|lambda)\b", code, re.M), "a stage holds no logic"


def test_nothing_names_a_place_of_a_machine():
    "Warnings and temporary folders in outputs of notebooks are what brings them in."
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    texts = [name for name in listed.stdout.split("\0") if name.endswith((".ipynb", ".md", ".csv", ".json", ".yaml"))]
    found = [name for name in texts if re.search(r"/tmp/|/home/\w|/root/|/site-packages/", (ROOT / name).read_text())]
    assert found == []


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_smaller_numbers(room):
    rooms = (p for p in NOTEBOOKS if p.parent.name == "nbs" and re.match(r"\d\d_", p.name))
    number = {re.sub(r"\d+_", "", p.stem): p.name for p in rooms}
    source = (ROOT / f"dilo/{room}.py").read_text()
    for other in re.findall(r"^\s*from (?:dilo)?\.(\w+) import", source, re.M):
        assert number[other] < number[room], f"{room} imports {other}"


def test_imports_need_the_runtime_dependencies_alone():
    blocked = [
        "nbdev",
        "execnb",
        "fastcore",
        "dvc",
        "papermill",
        "jupyterlab",
        "nbconvert",
        "seaborn",
        "matplotlib",
        "sklearn",
        "pillow_heif",
        "tensorboard",
        "dvclive",
    ]
    code = f"""
import sys
sys.modules |= dict.fromkeys({blocked})
for room in {[r for r in ROOMS if r not in ("figures", "ablations", "report", "workflow")]}:
    __import__(f"dilo.{{room}}")
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_package_is_found_beside_a_clone_of_its_name(tmp_path):
    "A clone named dilo, with the pipeline's folder data in it, is no package: what is installed is."
    (tmp_path / "dilo/data").mkdir(parents=True)
    code = "import dilo.data, dilo; print(dilo.data.render_world.__module__, dilo.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and str(tmp_path) not in done.stdout, done.stderr


def test_lock_names_no_place():
    lock = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|^-", lock, re.M), "the lock must hold names and versions alone"
    assert all(re.match(r"[\w.\[\],-]+==[\w.+]+( ;.*)?$", line) for line in lock.splitlines() if line.strip())
