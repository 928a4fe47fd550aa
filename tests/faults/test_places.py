"""Every command where users work: long paths with spaces and umlauts, links, no UTF-8, no home, a clock that jumps back.

`make test` has all of this at once, `make faults` each alone, too."""

import shutil

import pytest
from commands import MANY, write_photos
from running import running

CLOCK = """
import time
_time, _start = time.time, time.monotonic()
time.time = lambda: _time() - (86400 if time.monotonic() - _start > 12 else 0)  # a day back, while commands are at work
"""
C = {"LC_ALL": "C", "LANG": "C"}  # Python turns to UTF-8 by itself, unless it is told not to
NO_UTF8 = C | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NO_HOME = {"HOME": "/dev/null/none", "XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": "", "MPLCONFIGDIR": ""}
LONG = "Überträge mit Leerzeichen, 100 % " + 120 * "x"
SITUATIONS = {
    "path": dict(name=LONG),
    "link": dict(linked=True),
    "locale": dict(env=C, name="ü"),
    "no UTF-8": dict(env=NO_UTF8, names=("klass", "zwei")),
    "home": dict(env=NO_HOME),
    "clock": dict(clock=True),
    "all": dict(name=LONG, linked=True, env=C | NO_HOME, clock=True),
}
SMALL = ["--set=model.width=8", "--set=data.size=40", "--set=train.precision=fp32", "--set=saliency.size=64"]
SMALL += ["--size", "32", "--epochs", "1", "--batch", "8", "--jobs", "2", "--quiet"]
COMMANDS = [
    "saliency photos/train --out maps --jobs 2 --quiet".split(),
    "saliency photos/val --out maps_val --jobs 1 --quiet --method ft".split(),
    "saliency-score maps maps".split(),
    "saliency-train photos/train --out net.safetensors --epochs 3 --jobs 2 --quiet".split(),
    "preview one.png --out sheet.png --method ft".split(),
    ["pretrain", "photos/train", "--out", "run", "--recipe", "dilo", *SMALL],
    "evaluate run photos --json e.json".split(),
    "embed photos/train --weights run --out f.csv --jobs 2 --quiet".split(),
    "neighbours photos/train --weights run --against e.safetensors --out page.html --quiet".split(),
    "export run --out export".split(),
    "transfer classify run photos --layout folders --length 1 --batch 8 --out transfer --quiet".split(),
]


@pytest.mark.parametrize("name", SITUATIONS if MANY else ["all"])
def test_every_command_works(tmp_path, name):
    about = SITUATIONS[name]
    folder = tmp_path / about.get("name", "place")
    (folder / "elsewhere").mkdir(parents=True)
    photos = "elsewhere" if about.get("linked") else "photos"
    write_photos(folder, 24, 40, photos, about.get("names", ("kläss", "zwei zwei")))
    if about.get("linked"):
        (folder / "photos").symlink_to(folder / "elsewhere")
    shutil.copy(next((folder / photos / "train").rglob("*.png")), folder / "one.png")
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock/sitecustomize.py").write_text(CLOCK)
    with running([str(tmp_path / "clock")] if about.get("clock") else [], **about.get("env", {})) as ask:
        for command in COMMANDS:
            done = ask(command, folder)
            assert done["status"] == 0 and "Traceback" not in done["said"], (command, done["said"])
