"""A folder that may not be written to, or goes away; files that change; a second run: each is named, and nothing is lost.

`make test` has this for some commands, `make faults` for all."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest
from commands import COMMANDS, MANY, contents, inputs, mounted, place, run  # noqa: F401, the last three are fixtures
from running import ROOT, running


def named(done, word):
    "The last line of what a command that failed has said, which must hold the word; no traceback."
    last = done["said"].strip().splitlines()[-1]
    assert done["status"] == 2 and "Traceback" not in done["said"] and "did not foresee" not in last, done
    assert word in last, last
    return last


@pytest.mark.parametrize("name", COMMANDS if MANY else ["saliency", "moco", "embed"])
def test_a_folder_that_may_not_be_written_to_is_named(place, run, mounted, tmp_path, name):  # noqa: F811
    folder = inputs(place, tmp_path / "place")
    mounted(folder / "out", 2**28, "ro")
    assert "out" in named(run(COMMANDS[name], folder), "Read-only file system")
    assert contents(folder) == {}
    mounted(folder / "out", 2**28)
    assert run(COMMANDS[name], folder)["status"] == 0


LONG = {  # with files of theirs that come and what to wait for, so many of them
    "saliency": ("saliency many --out out --jobs 1 --quiet".split(), "*/*.png", 9),
    "network": ([*COMMANDS["network"], "--epochs", "9"], "net.work/*.pt", 1),
    "moco": ([*(w.replace("photos/train", "many") for w in COMMANDS["moco"]), "--epochs", "12"], "last.pt", 1),
    "embed": ("embed many --weights e.safetensors --out out/f.npy --jobs 1 --quiet".split(), "f.work/rows.npy", 1),
    "transfer": ([*COMMANDS["transfer"], "--length", "60"], "*/last.pt", 1),
}
SOME = LONG if MANY else ["saliency"]


@pytest.fixture(scope="module")
def many(place):  # noqa: F811
    "Enough photos for a command to be at work for a while."
    for number in range(0 if (place / "many").exists() else 16):
        (place / f"many/{number}").mkdir(parents=True)
        for file in (place / "photos/train").rglob("*.png"):
            (place / f"many/{number}" / file.name).hardlink_to(file)
    return place / "many"


def at_work(out, name):
    "Waits until the command has written what it is known for."
    _, files, count = LONG[name]
    deadline = time.monotonic() + 120
    while len(list(out.glob(files))) < count:
        assert time.monotonic() < deadline, f"{name} has not come to {files}"
        time.sleep(0.002)


@pytest.mark.parametrize("name", SOME)
def test_a_folder_that_goes_away_is_named(place, many, run, tmp_path, name):  # noqa: F811
    whole, folder = inputs(place, tmp_path / "whole"), inputs(place, tmp_path / "place")
    command, out = LONG[name][0], folder / "out"
    assert run(command, whole)["status"] == 0

    def remove():
        at_work(out, name)
        out.rename(folder / "gone")

    told = named(run(command, folder, meanwhile=remove), "out")
    assert re.search(r"(^dilo: |/)out\b", told), told  # or a file of it, by the moment
    assert not out.exists()
    (folder / "gone").rename(out)
    assert run(command, folder)["status"] == 0
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("name", SOME)
def test_a_second_run_is_refused_with_the_name_of_the_first(place, many, run, tmp_path, name):  # noqa: F811
    folder = inputs(place, tmp_path / "place")
    command = LONG[name][0]
    second = []

    def start():
        at_work(folder / "out", name)
        second.append(other(command, folder))

    with running() as other:
        other(["--help"], folder)  # it has loaded torch now
        first = run(command, folder, meanwhile=start)
    assert first["status"] == 0, first["said"]
    assert f"process {first['session']} on" in named(second[0], "is at work here; wait for it"), second


def test_a_photo_that_breaks_is_named_and_costs_no_map(place, many, run, tmp_path):  # noqa: F811
    folder = inputs(place, tmp_path / "place", ["e.safetensors"])
    shutil.copytree(many, folder / "many")
    last = max((folder / "many").rglob("*.png"))
    whole = last.read_bytes()

    def break_it():
        at_work(folder / "out", "saliency")
        last.write_bytes(whole[:100])

    done = run(LONG["saliency"][0], folder, meanwhile=break_it)
    assert done["status"] == 1 and "9/63.png: cannot be read as a photo" in done["said"], done
    maps = sorted((folder / "out").rglob("*.png"))
    assert len(maps) == 16 * 64 - 1
    before = [file.stat().st_mtime_ns for file in maps]
    last.write_bytes(whole)
    assert run(LONG["saliency"][0], folder)["status"] == 0
    assert [file.stat().st_mtime_ns for file in maps] == before and len(list((folder / "out").rglob("*.png"))) == 16 * 64


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_what_cannot_be_printed_is_told_and_costs_nothing(place, tmp_path):  # noqa: F811
    folder = inputs(place, tmp_path / "place")
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", PYTHONUNBUFFERED="")  # buffered, as by default
    dilo = f"{shlex.quote(sys.executable)} -m dilo.cli"
    closed = f"{dilo} embed photos/val --weights e.safetensors --out out/f.csv --size 32 --jobs 1 >&- 2>&-"
    full = f"{dilo} evaluate e.safetensors photos --size 32 --json out/e.json >/dev/full"
    options = dict(shell=True, cwd=folder, env=env, capture_output=True, text=True)
    shown = [subprocess.run(line, **options) for line in (closed, full)]
    assert shown[0].returncode == 0 and len((folder / "out/f.csv").read_text().splitlines()) == 33
    assert shown[1].returncode == 2 and "dilo: standard output: No space left on device" in shown[1].stderr
    assert "Exception ignored" not in shown[1].stderr
    assert (folder / "out/e.json").exists()
