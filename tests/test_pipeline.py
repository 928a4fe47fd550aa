"The pipeline on a fresh clone, run by the user's own commands in the smoke profile."

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time

import nbformat
import pandas as pd
import pytest
import torch

RUNS = ("moco-0", "dilo-0")


def test_repro_ends_with_a_report(smoke):
    stages = [
        "source",
        "settings",
        "raw",
        "pack",
        "saliency",
        "views",
        "results",
        "report",
        *(f"{s}@{r}" for s in ("pretrain", "evaluate") for r in RUNS),
    ]
    assert all(f"Running stage '{stage}'" in smoke.first for stage in stages), smoke.first
    page = (smoke.folder / "reports/index.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#|[\w-]+\.html["'])""", page), "the page would load something"
    assert page.count("<img") >= 6 and page.count("<table") >= 4 and page.count("<figcaption>") == page.count("<img")
    assert page.index("When does finding the object matter?") < page.index("The question of this page")
    assert "What DiLo gains, by map" in page, "the committed results of the dials are not shown"
    pages = re.findall(r'href="([\w-]+\.html)"', page)
    assert len(pages) >= len(stages) - 2  # each executed notebook; source and settings have none
    for linked in pages:
        text = (smoke.folder / "reports" / linked).read_text()
        assert "<html" in text and not re.search(r"""(?:src|href)=["']https?://""", text), linked


def test_results_are_whole(smoke):
    splits = {"original", "mixed_same", "mixed_rand", "mixed_next", "only_fg", "no_fg", "only_bg_b", "only_bg_t"}
    for run in RUNS:
        result = json.loads((smoke.folder / f"runs/{run}/metrics.json").read_text())
        for classifier in ("knn", "linear"):
            assert set(result[classifier]) == splits
            assert all(0 <= a <= 1 for a in result[classifier].values())
        assert result["linear"]["original"] > 2 * result["chance"], "the probe has learned nothing"
        history = pd.read_csv(smoke.folder / f"runs/{run}/history.csv")
        assert history.epoch.tolist() == [1, 2] and history.notna().all().all()
        assert (history.pasted.between(0.2, 0.4) if run == "dilo-0" else history.pasted == 0).all()
    scores = json.loads((smoke.folder / "build/saliency.json").read_text())
    assert scores["rbd"]["max_f"] > scores["centre"]["max_f"] + 0.1


def test_nothing_runs_twice(smoke):
    started = time.monotonic()
    assert smoke.stages_run("repro") == []
    print(f"unchanged `dvc repro`: {time.monotonic() - started:.1f} s")


def test_git_stays_clean_of_artefacts(smoke):
    changed = {line[3:] for line in smoke.run("git", "status", "--porcelain").splitlines()}
    tracked = {
        "params.yaml",
        "dvc.lock",
        "data.dvc",
        "results/smoke/",
    }
    assert changed <= tracked, "only settings, lock, import and results may change"


def test_running_a_stage_notebook_or_editing_prose_retrains_nothing(smoke):
    for name in ("pretrain", "report"):
        path = smoke.folder / f"nbs/stages/{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        for number, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
            cell.outputs = [nbformat.v4.new_output("stream", text="it ran\n")]
            cell.execution_count = number + 1
            cell.metadata["execution"] = {"iopub.execute_input": "now"}
        notebook.metadata["language_info"] = {"name": "python", "version": "3.12.0"}
        nbformat.write(notebook, path)
    path = smoke.folder / "nbs/training/08_loop.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].source += "\n\nOne more sentence."
    notebook.cells.insert(3, nbformat.v4.new_markdown_cell("A paragraph of its own."))
    nbformat.write(notebook, path)
    ran = smoke.stages_run("repro")
    assert set(ran) == {"export", "source"}, ran


def test_a_changed_recipe_reruns_itself_alone(smoke):
    before = {run: (smoke.folder / f"runs/{run}/encoder.safetensors").read_bytes() for run in RUNS}
    ran = smoke.stages_run("exp", "run", "-S", "recipes.dilo.probability=0.6", "-S", "recipes.dilo.background=swap")
    assert ran == ["settings", "pretrain@dilo-0", "evaluate@dilo-0", "transfer", "results", "report"], ran
    assert (smoke.folder / "runs/moco-0/encoder.safetensors").read_bytes() == before["moco-0"]
    assert (smoke.folder / "runs/dilo-0/encoder.safetensors").read_bytes() != before["dilo-0"]
    assert pd.read_csv(smoke.folder / "runs/dilo-0/history.csv").pasted.between(0.5, 0.7).all()
    smoke.edit("params.yaml", "background: swap, probability: 0.6", "background: grey, probability: 0.3")
    smoke.run("dvc", "repro")
    assert (smoke.folder / "runs/dilo-0/encoder.safetensors").read_bytes() == before["dilo-0"], (
        "same settings, other bits"
    )


def test_metrics_and_plots(smoke):
    metrics = json.loads(smoke.run("dvc", "metrics", "show", "--json"))[""]["data"]
    assert set(metrics) == {"build/saliency.json", *(f"runs/{run}/metrics.json" for run in RUNS)}
    smoke.run("dvc", "plots", "show")
    assert "runs/dilo-0/history.csv" in (smoke.folder / "dvc_plots/index.html").read_text()


def test_results_are_two_tables_and_touch_no_other_profile(smoke):
    "What was run here lies in results/smoke/; what other profiles have published stays as it is."
    runs = pd.read_csv(smoke.folder / "results/smoke/runs.csv")
    assert [f"{r}-{s}" for r, s in zip(runs.recipe, runs.seed)] == list(RUNS) and runs["linear.mixed_rand"].notna().all()
    assert all(json.loads(settings)["train.epochs"] == 2 for settings in runs.settings)
    outcomes = pd.read_csv(smoke.folder / "results/smoke/outcomes.csv", dtype={"right": str})
    assert len(outcomes) == len(RUNS) * 2 * 8 and (outcomes.right.str.len() == 200).all()
    own = outcomes[(outcomes.recipe == "dilo") & (outcomes.classifier == "linear") & (outcomes.split == "only_fg")]
    assert abs(own.right.iloc[0].count("1") / 200 - runs["linear.only_fg"][1]) < 1e-9
    assert "results" not in smoke.run("git", "status", "--porcelain", "--untracked-files=no")
    said = smoke.run("python", "-m", "dilo.config", "seeds", fails=True)
    assert "holds profile 'smoke'" in said and "git checkout params.yaml" in said, said


def test_a_study_under_way_is_gathered(smoke):
    tables = [smoke.folder / "results/smoke" / name for name in ("runs.csv", "outcomes.csv")]
    before, aside = [table.read_bytes() for table in tables], smoke.folder / "runs/aside"
    assert "Missing: nothing" in smoke.run("python", "-m", "dilo.study.workflow", "gather")
    (smoke.folder / "runs/dilo-0").rename(aside)
    assert "Missing: nothing" in smoke.run("python", "-m", "dilo.study.workflow", "gather"), "a row was lost"
    assert [table.read_bytes() for table in tables] == before
    tables[0].unlink()
    assert "Missing: dilo-0" in smoke.run("python", "-m", "dilo.study.workflow", "gather")
    aside.rename(smoke.folder / "runs/dilo-0")
    for table, held in zip(tables, before):
        table.write_bytes(held)


def test_verify_compares_with_the_committed_runs(smoke):
    assert "Does it repeat?" in (smoke.folder / "reports/index.html").read_text()
    command = ("python", "-m", "dilo.study.workflow", "verify")
    assert "results/smoke/runs.csv: not in commit HEAD" in smoke.run(*command, fails=True)
    for git in ("add -f results/smoke", "commit -qm results", "tag published", "reset -q HEAD~1"):
        smoke.run("git", *git.split())
    command += ("--against", "published")
    assert "2 of 2 runs repeat the committed ones: 2 with the same bits." in smoke.run(*command)
    path = smoke.folder / "runs/moco-0/metrics.json"
    before = path.read_text()
    result = json.loads(before)
    result["linear"]["original"] -= 0.005
    path.write_text(json.dumps(result))
    said = smoke.run(*command, fails=True)
    assert "moco, seed 0: OTHER BITS on the same kind of machine" in said and "1 of 2 runs repeat" in said, said
    path.write_text(before)
    made = json.loads((smoke.folder / "runs/moco-0/settings.json").read_text())
    assert made["train.precision"] == "fp32" and made["machine.processor"] and made["machine.threads"]


def test_a_killed_run_ends_with_the_same_encoder(smoke):
    def encoder():
        return hashlib.sha256((smoke.folder / "runs/dilo-0/encoder.safetensors").read_bytes()).hexdigest()

    smoke.edit("params.yaml", "  epochs: 2 ", "  epochs: 6 ")
    run, stage = smoke.folder / "runs/dilo-0", "pretrain@dilo-0"
    process = subprocess.Popen(
        ["dvc", "repro", stage],
        cwd=smoke.folder,
        env=smoke.env,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        history = run / "history.csv"  # the finished run's is removed first
        if not (run / "encoder.safetensors").exists() and history.exists() and len(pd.read_csv(history)) >= 3:
            break
        time.sleep(0.02)
    for pid in _descendants(process.pid):
        os.kill(pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    epochs = len(pd.read_csv(run / "history.csv"))
    assert not (run / "encoder.safetensors").exists() and 1 <= epochs < 6
    assert f"going on after epoch {epochs}" in smoke.run("dvc", "repro", stage)
    resumed = encoder()
    assert "going on after" not in smoke.run("dvc", "repro", "--force", "--single-item", stage)
    assert encoder() == resumed
    smoke.edit("params.yaml", "  epochs: 6 ", "  epochs: 2 ")
    smoke.run("dvc", "repro")


def test_two_processes_share_every_batch(smoke):
    smoke.run("accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "dilo.training", "dilo_true", "7")
    run = smoke.folder / "runs/dilo_true-7"
    state = torch.load(run / "last.pt", weights_only=True)
    # 2 epochs of 6 steps of 64 images end where a queue of 256 began; a process that pushed its own half would be at 128
    assert int(state["method"]["queue.pointer"]) == 2 * 6 * 64 % 256
    history = pd.read_csv(run / "history.csv")
    assert history.epoch.tolist() == [1, 2] and history.notna().all().all()
    shutil.rmtree(run)


def _descendants(pid):
    "The process and all that it started, by /proc."
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parent = int(open(f"/proc/{entry}/stat").read().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("probability: 0.3", "probability: 1.3", ["recipes.dilo.probability = 1.3", "less than or equal to 1"]),
        ("probability: 0.3", "probabilty: 0.3", ["recipes.dilo.probabilty = 0.3", "did you mean probability?"]),
        ("lr: 0.06", "lr: fast", ["train.lr = 'fast'", "number"]),
        ("queue: 256", "queue: 64", ["moco_v2.queue = 64", "larger than train.batch = 64"]),
        ("source: world", "source: folder", ["data.folder = None", "name a folder"]),
        ("folder: null", "folder: no/photos\n  source: folder", ["data.folder = 'no/photos'", "there is no folder"]),
    ],
)
def test_wrong_settings_stop_at_once(fresh, old, new, said):
    fresh.run("python", "-m", "dilo.config", "smoke")
    fresh.edit("params.yaml", old, new)
    if "no/photos" in new:
        fresh.edit("params.yaml", "  source: world", "")
    output = fresh.run("python", "-m", "dilo.config", fails=True)
    assert all(s in output for s in said), output


def test_wrong_settings_stop_the_pipeline_at_its_first_stage(fresh):
    fresh.run("python", "-m", "dilo.config", "smoke")
    fresh.edit("params.yaml", "probability: 0.3", "probability: 1.3")
    output = fresh.run("dvc", "repro", fails=True)
    assert "recipes.dilo.probability = 1.3" in output and "failed to reproduce 'settings'" in output
    assert "raw.ipynb" not in output, "nothing else has run"


def test_a_folder_of_photos(smoke, fresh):
    "The same pipeline on an ImageFolder tree without masks."
    from PIL import Image

    for split, every in (("train", 2), ("val", 3)):
        for number, path in enumerate(sorted((smoke.folder / "raw" / split).rglob("*.bmp"))[::every]):
            target = fresh.folder.parent / "photos" / split / path.parent.name / f"{number}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).resize((80, 70)).save(target)
    fresh.run("python", "-m", "dilo.config", "smoke")
    fresh.edit("params.yaml", "source: world", "source: folder")
    fresh.edit("params.yaml", "folder: null", "folder: ../photos")
    fresh.edit("params.yaml", "recipes:\n  - moco\n  - dilo\n", "recipes: [moco, dilo, lewel_m]\n")
    fresh.run("dvc", "repro")
    for run in (*RUNS, "lewel_m-0"):
        result = json.loads((fresh.folder / f"runs/{run}/metrics.json").read_text())
        assert set(result["linear"]) == set(result["knn"]) == {"original"}
    assert "../photos" in (fresh.folder / "reports/index.html").read_text()
    assert json.loads((fresh.folder / "build/saliency.json").read_text()) == {}
    maps = pd.read_csv(fresh.folder / "results/smoke/alignment.csv")
    assert list(maps) == ["recipe", "seed", "encoder", "contrast"] and list(maps.recipe) == ["lewel_m"]
    assert 1.001 < maps.contrast[0] < 7.4  # unit vectors at scale 1
    assert (fresh.folder / "results/smoke/alignment.png").stat().st_size > 10_000
