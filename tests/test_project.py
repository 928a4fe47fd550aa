"The project itself: package and README are what the notebooks say, and the package needs its run-time dependencies alone."

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
from types import ModuleType

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "nbs").rglob("[!.]*.ipynb"))
NOTEBOOKS = [n for n in NOTEBOOKS if ".ipynb_checkpoints" not in n.parts]
GUIDES = [n for n in NOTEBOOKS if n.parent.name == "guides"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *GUIDES]
WINGS = ["files", "page", "config", "data", "saliency", "augmentation", "training", "evaluation", "transfer", "study", "cli"]
MODULES = sorted(p for p in (ROOT / "dilo").rglob("*.py") if p.name != "_modidx.py")
LIBRARY = [n for n in NOTEBOOKS if n.relative_to(ROOT / "nbs").parts[0] in WINGS or n.parent.name == "nbs"]


def dotted(module):
    "dilo/saliency/methods.py as saliency.methods, a wing's face as its name."
    parts = module.relative_to(ROOT / "dilo").with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def imported(source, package):
    "The modules of dilo that a source text imports at any depth, as saliency.methods; relative names start from `package`."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("dilo.") for alias in node.names if alias.name.startswith("dilo."))
        elif isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (".".join([*above, name]) for name in names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dilo":
            name = node.module.removeprefix("dilo").removeprefix(".")
            yield from ([name] if name else (alias.name for alias in node.names))


def code_of(notebook):
    "The code of a notebook, without magics."
    cells = json.loads(notebook.read_text())["cells"]
    text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    return re.sub(r"^\s*[%!].*$", "", text, flags=re.M)


def test_package_and_readme_are_what_the_notebooks_say(fresh):
    fresh.run("nbdev_export")
    fresh.run("python", "-m", "dilo.study.workflow", "readme")
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


def test_no_room_hides_a_name_of_its_face():
    hidden = {}
    for path in (ROOT / "dilo").rglob("__init__.py"):
        face = importlib.import_module(".".join(path.parent.relative_to(ROOT).parts))
        for module in path.parent.glob("[!_]*.py"):
            importlib.import_module(f"{face.__name__}.{module.stem}")
        names = getattr(face, "__all__", [])
        hidden[face.__name__] = [name for name in names if isinstance(getattr(face, name), ModuleType)]
    assert hidden["dilo.evaluation"] == [] and not any(hidden.values()), hidden


def prose(page):
    "The Markdown of a page: a file, or the cells of a notebook."
    if page.suffix == ".md":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def test_readme_is_short_and_leads_to_every_guide():
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 12_000
    assert GUIDES and [g.name for g in GUIDES if f"(nbs/guides/{g.name})" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_a_page_names_is_there(page):
    text = prose(page)
    links = [page.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
    named = [ROOT / name for name in re.findall(r"\b(?:nbs|tests|benchmarks|results)/[\w./-]*\.(?:ipynb|py|csv|json)", text)]
    assert [str(p) for p in links + named if not p.exists()] == []
    profiles = {path.stem for path in (ROOT / "profiles").glob("*.yaml")}
    assert set(re.findall(r"(?:PROFILE=|dilo\.config )(\w+)", text)) <= {"default", *profiles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_of_a_page_are_understood(page):
    from dilo.cli import _parser

    lines = "\n".join(re.findall(r"^```\n(.*?)^```", prose(page), re.S | re.M)).splitlines()
    found = [shlex.split(line, comments=True) for line in lines if re.match(r"(\S+/)?dilo ", line)]
    for words in found:
        assert _parser().parse_args(words[1:]).run, words  # argparse exits where it does not understand
    if page.name in ("README.md", "01_masks.ipynb", "02_views.ipynb", "03_encoder.ipynb", "08_transfer.ipynb"):
        assert found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_page_imports_from_faces_alone(page):
    assert re.findall(r"from dilo\.\w+\.\w+.* import", prose(page)) == []


@pytest.mark.parametrize("page", ["README.md", "nbs/guides/03_encoder.ipynb"])
def test_python_of_a_page_runs(tmp_path, monkeypatch, page):
    "With the files that the page's commands leave. The code cells of guides run as all notebooks do."
    import torchvision
    from PIL import Image
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "maps", "encoder"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (300, 200), "orange").save("photos/cat.jpg")
    Image.new("L", (300, 200), 128).save("maps/cat.png")
    trunk = {k: v for k, v in torchvision.models.resnet18().state_dict().items() if not k.startswith("fc.")}
    save_file(trunk, "encoder/model.safetensors")
    blocks = re.findall(r"^```python\n(.*?)^```", prose(ROOT / page), re.S | re.M)
    assert blocks
    names = {}
    for block in blocks:
        exec(block, names)
    if page == "README.md":
        assert names["first"].shape == names["second"].shape == (3, 224, 224)


def test_nothing_names_a_place_of_a_machine():
    "Warnings and temporary folders in outputs of notebooks are what brings them in."
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    texts = [name for name in listed.stdout.split("\0") if name.endswith((".ipynb", ".md", ".csv", ".json", ".yaml"))]
    found = [name for name in texts if re.search(r"/tmp/|/home/\w|/root/|/site-packages/", (ROOT / name).read_text())]
    assert found == []


@pytest.mark.parametrize("module", MODULES, ids=dotted)
def test_wings_import_in_one_direction_and_from_faces_alone(module):
    package = list(module.relative_to(ROOT / "dilo").parts[:-1])
    own = dotted(module).split(".")[0]
    for other in imported(module.read_text(), package):
        wing = other.split(".")[0]
        if wing in ("", own, "__version__"):
            continue
        assert WINGS.index(wing) < WINGS.index(own), f"{dotted(module)} imports {other}: {wing} comes after {own}"
        assert other == wing, f"{dotted(module)} imports {other}: past the face of another wing"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_import_other_wings_from_their_faces(path):
    wing = path.relative_to(ROOT / "nbs").parts[0]
    for other in imported(code_of(path), []):
        face = other.split(".")[0]
        assert face == wing or other == face, f"{path.name} imports dilo.{other}: past the face of another wing"


def test_rooms_import_earlier_rooms_alone():
    "The notebooks of a wing are read in order: whatever a room imports of its own wing stands in a notebook before it."
    place = {}
    for notebook in LIBRARY:
        for module in re.findall(r"^#\| default_exp ([\w.]+)", code_of(notebook), re.M):
            # the methods come after the models, of which they are made
            order = [f"{1.5 if p == 'methods' else p}" for p in notebook.relative_to(ROOT / "nbs").parts[1:]]
            place[module.removesuffix(".__init__")] = [float(re.match(r"[\d.]+", p).group().rstrip(".")) for p in order]
    for module in MODULES:
        name, package = dotted(module), list(module.relative_to(ROOT / "dilo").parts[:-1])
        if module.name == "__init__.py" or "." not in name:
            continue
        for other in imported(module.read_text(), package):
            if other.split(".")[0] == name.split(".")[0]:
                assert place[other] < place[name], f"{name} imports {other}, which comes after it"


def test_rooms_stay_small():
    "A folder has at most twelve rooms beside its face. A room of more than 400 lines says in its first cell why."
    for folder in {n.parent for n in LIBRARY} - {ROOT / "nbs"}:
        rooms = [r for r in folder.glob("[0-9]*.ipynb") if not r.name.startswith("00_")]
        assert 1 <= len(rooms) <= 12, f"{folder} has {len(rooms)} rooms"
    for notebook in LIBRARY:
        cells = json.loads(notebook.read_text())["cells"]
        code = "\n".join("".join(c["source"]) for c in cells if re.search(r"^#\| export", "".join(c["source"]), re.M))
        lines = [line for line in code.splitlines() if line.strip()]
        assert len(lines) <= 400 or "Longer than 400 lines" in "".join(cells[0]["source"]), f"{notebook.name}: {len(lines)}"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.name)
def test_no_cell_is_longer_than_a_screen(path):
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        assert cell["cell_type"] != "code" or len(text.splitlines()) <= 60, f"{path.name}:\n{text[:300]}"


def test_the_pipeline_is_short():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 150


def test_imports_need_the_runtime_dependencies_alone():
    blocked = [
        "nbdev",
        "execnb",
        "fastcore",
        "dvc",
        "papermill",
        "jupyterlab",
        "ipywidgets",
        "nbconvert",
        "seaborn",
        "matplotlib",
        "sklearn",
        "pillow_heif",
        "tensorboard",
        "dvclive",
        "timm",
        "onnx",
        "umap",
        "pyarrow",
        "jinja2",
    ]
    code = f"""
import sys
sys.modules |= dict.fromkeys({blocked})
for module in {[dotted(m) for m in MODULES if dotted(m) and not dotted(m).startswith("study")]}:
    __import__(f"dilo.{{module}}")
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_package_is_found_beside_a_clone_of_its_name(tmp_path):
    "A clone named dilo, with the pipeline's folder data in it, is no package: what is installed is."
    (tmp_path / "dilo/data").mkdir(parents=True)
    code = "import dilo.data.world, dilo; print(dilo.data.render_world.__module__, dilo.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and str(tmp_path) not in done.stdout, done.stderr


def test_lock_names_no_place():
    lock = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|^-", lock, re.M), "the lock must hold names and versions alone"
    assert all(re.match(r"[\w.\[\],-]+==[\w.+]+( ;.*)?$", line) for line in lock.splitlines() if line.strip())


def test_make_alone_says_what_there_is_to_make():
    told = subprocess.run(["make", "-C", str(ROOT)], check=True, capture_output=True, text=True).stdout
    rules = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    assert all(f"make {rule} " in told for rule in rules if rule != "help"), told


def test_no_module_uses_a_name_that_only_its_notebook_has():
    "In a notebook, a check's imports serve the exported cells, too; in the package they are not there."
    rules = ["--preview", "--select", "F821,PLW1514"]  # names that are not there; text files without an encoding
    subprocess.run(["ruff", "check", "--isolated", *rules, str(ROOT / "dilo")], check=True)
