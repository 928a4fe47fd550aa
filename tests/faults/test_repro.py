"""A pipeline that is killed again and again, or whose disk is full: no process stays, and it ends with the same bits.

In `make faults` only."""

import os
import random
import re
import shutil
import subprocess
import tempfile
import time

import pandas as pd
import pytest
from commands import mounted, of  # noqa: F401, the first is a fixture
from conftest import clone

KILLS = int(os.environ.get("DILO_FAULTS", 1))


def used(folder):
    "The bytes of the disk that a folder takes."
    return int(subprocess.check_output(["du", "-s", "--block-size=1", folder]).split()[0])


def tables(folder):
    "What the runs of a study came to, and the encoders' bytes; without the commit, which each clone makes for itself."
    files = sorted((folder / "results/smoke").glob("*.csv"))
    found = {file.name: pd.read_csv(file).drop(columns="commit", errors="ignore").to_csv() for file in files}
    return found | {str(e.parent.name): e.read_bytes() for e in sorted(folder.glob("runs/*/encoder.safetensors"))}


def repro(project, kill=None):
    "The exit status of `dvc repro` and what it said; None where it was killed after some seconds: no process of it stays."
    with tempfile.TemporaryFile() as log:
        options = dict(cwd=project.folder, env=project.env, start_new_session=True, stdout=log, stderr=log)
        process, killed = subprocess.Popen(["dvc", "repro"], **options), False
        try:
            process.wait(kill)
        except subprocess.TimeoutExpired:
            killed = True
            process.kill()
            process.wait()
        log.seek(0)
        said = log.read().decode()
    deadline = time.monotonic() + 10
    while of(process.pid):
        assert time.monotonic() < deadline, f"left behind: {of(process.pid)}"
        time.sleep(0.1)
    return (None if killed else process.returncode), said


def check_through(project, smoke):
    assert len(tables(smoke.folder)) >= 4
    assert tables(project.folder) == tables(smoke.folder)
    assert not [file for file in project.folder.rglob("*.part") if ".dvc" not in file.parts]


@pytest.mark.skipif(KILLS == 1, reason="takes many minutes: make faults")
def test_a_killed_pipeline_ends_with_the_same_bits(smoke, tmp_path):
    moments, killed, begun = random.Random(KILLS), [], 0
    while sum(killed) < KILLS:  # it is begun anew when it is through
        begun += 1
        project = clone(tmp_path / str(begun))
        project.run("python", "-m", "dilo.config", "smoke")
        killed.append(0)
        while True:
            status, said = repro(project, moments.uniform(3, 30) if sum(killed) < KILLS else None)
            if status is not None:
                break
            killed[-1] += 1
        assert status == 0, said
        check_through(project, smoke)
        shutil.rmtree(project.folder)
    print(f"pipelines killed {killed} times")
    assert max(killed) >= 3


@pytest.mark.skipif(KILLS == 1, reason="takes many minutes: make faults")
def test_a_full_disk_costs_a_pipeline_nothing(smoke, mounted, tmp_path):  # noqa: F811
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted(disk, 2**33)
    project = clone(disk / "dilo")
    project.run("python", "-m", "dilo.config", "smoke")
    size = used(disk)
    step = (used(smoke.folder) - size) // 8
    full = 0
    while True:
        mounted(disk, size)  # a little more room each time
        status, said = repro(project)
        if status == 0:
            break
        full += 1
        told = re.search(r".*(No space left on device|disk is full).*", said)
        assert full <= 16 and told, said
        print(told[0][-200:])
        size += step
    print(f"disk full {full} times")
    assert full >= 3
    check_through(project, smoke)
