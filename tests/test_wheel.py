"The wheel works where nothing but the run-time dependencies is installed."

import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement
from PIL import Image


def needed(requirements):
    "The installed distributions that requirements name, and those that these need, by name."
    found, open_ones = {}, [Requirement(r) for r in requirements]
    while open_ones:
        wanted = open_ones.pop()
        for extra in wanted.extras or {""}:
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
                continue
            key = wanted.name.lower().replace("_", "-")
            if key not in found:
                found[key] = metadata.distribution(wanted.name)
                open_ones += [Requirement(r) for r in found[key].requires or [] if "extra ==" not in r]
    return found


def link(distribution, place):
    "Makes an installed distribution importable from the folder `place`."
    for file in distribution.files or []:
        top = file.parts[0]
        source, target = Path(distribution.locate_file(top)), place / top
        if top not in ("..", "__pycache__") and source.exists() and not target.exists():
            target.symlink_to(source)


def test_the_wheel_needs_the_runtime_dependencies_alone(fresh, tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    fresh.run(*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path))
    (wheel,) = tmp_path.glob("dilo-*.whl")
    venv.create(tmp_path / "empty", with_pip=False)
    python = tmp_path / "empty/bin/python"
    (place,) = (tmp_path / "empty/lib").glob("python*/site-packages")
    subprocess.run([*pip, "install", "--no-deps", "--quiet", "--target", str(place), str(wheel)], check=True)
    (told,) = metadata.distributions(name="dilo", path=[str(place)])
    runtime = needed([r for r in told.requires if "extra ==" not in r])
    for distribution in runtime.values():
        link(distribution, place)
    assert "torch" in runtime and not {"dvc", "nbdev", "papermill", "seaborn", "jupyterlab"} & set(runtime)
    wings = ("data", "saliency", "augmentation", "training.methods", "evaluation", "cli")
    code = "; ".join(f"import dilo.{w}" for w in wings) + "; print(dilo.__file__)"
    done = subprocess.run([python, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(str(place)), done.stderr
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photos/noise.png")
    command = [python, "-I", "-m", "dilo.cli", "saliency", "photos", "--out", "maps", "--jobs", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "maps/noise.png").is_file(), done.stderr
