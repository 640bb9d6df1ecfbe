"""Training from the command line: what it prints, what it leaves, and what an interruption leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import numpy as np
import pytest
from test_cli import INTERRUPTIBLE, run
from test_gradient_training import make_pairs

from faiss_qama import QamaIndex

pytestmark = pytest.mark.slow

CONFIG = """
layout: 2x18
train:
  {epochs: %d, steps_per_epoch: 20, batch_size: 64, random_negatives: 64, learning_rate: 0.003,
   losses: {adc.contrastive: 1, hamming.contrastive: 1}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("training")
    x, xq, qrels = make_pairs(600)
    np.save(path / "corpus.npy", x)
    np.save(path / "queries.npy", xq)
    rows = "".join(f"{q}\t{d}\t{g}\n" for q, d, g in qrels)
    (path / "qrels.tsv").write_text("query\tdocument\tgrade\n" + rows)
    (path / "bad.tsv").write_text("query\tdocument\tgrade\n0\t5\t1\n1\tfive\t1\n")
    (path / "short.yaml").write_text(CONFIG % 4)
    (path / "long.yaml").write_text(CONFIG % 4000)
    return path


def test_fit_on_pairs_says_what_it_was_worth(folder):
    done = run("fit", "corpus.npy", "--config", "short.yaml", "--pairs", "queries.npy", "qrels.tsv", cwd=folder)
    lines = done.stdout.splitlines()
    record = QamaIndex.load(folder / "corpus.qama").quantizer.fit_record.training
    assert record.kept
    after, before = (side["adc"]["nDCG@10"] for side in (record.trained, record.untrained))
    assert after > 1.2 * before
    assert f"nDCG@10 {after:.3f} (untrained {before:.3f})" in lines[3]
    assert lines[1].startswith("quantizer   2x18, PCA + ITQ rotation, Lloyd-Max, linear adapter trained")
    assert lines[2].startswith("training    4 epochs in ")
    assert lines[2].endswith(f"kept the trained quantizer, {100 * record.gain:.1f} % better")
    assert lines[3].strip().startswith("on the held-out queries that chose the epoch: nDCG@10")
    assert lines[4].split()[0] == "loss"
    assert lines[5].startswith("on 100 held-out queries")
    assert "nDCG@10" in lines[5]
    exact, codes = (float(line.split()[-3]) for line in lines[6:8])
    assert codes > 1.2 * exact
    inspected = run("inspect", "corpus.qama", cwd=folder).stdout.splitlines()
    assert [line for line in inspected if line.startswith("training")] == [lines[2]]
    assert all(len(line) < 1200 for line in inspected)
    left = sorted(f.name for f in (folder / "corpus.qama.training").iterdir())
    assert left == [".lock", "log.jsonl"]
    log = [json.loads(line) for line in (folder / "corpus.qama.training" / "log.jsonl").read_text().splitlines()]
    assert log == record.log


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--pairs queries.npy bad.tsv", "bad.tsv: line 3: whole numbers are needed; got '1\\tfive\\t1'"),
        ("--pairs queries.npy none.tsv", "none.tsv: No such file"),
        ("--pairs corpus.npy queries.npy", "queries.npy: not UTF-8 text"),
        ("--pairs queries.npy", "requires 2 arguments"),
    ],
)
def test_wrong_pairs_are_one_line_before_anything_is_written(folder, arguments, message):
    done = run("fit", "corpus.npy", "-o", "never.qama", *arguments.split(), cwd=folder, check=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "never.qama").exists()
    assert not (folder / "never.qama.training").exists()


def test_interrupting_leaves_the_checkpoint_and_the_old_index(folder):
    run("fit", "corpus.npy", "-o", "kept.qama", cwd=folder)
    before = {f.name: f.read_bytes() for f in (folder / "kept.qama").iterdir()}
    command = [*INTERRUPTIBLE, "fit", "corpus.npy", "-o", "kept.qama", "--config", "long.yaml"]
    command += ["--pairs", "queries.npy", "qrels.tsv"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = folder / "kept.qama.training" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (output, errors.strip()) == ("ready\n", "interrupted")
    assert {f.name: f.read_bytes() for f in (folder / "kept.qama").iterdir()} == before
    assert (folder / "kept.qama.training" / "checkpoint.safetensors").exists()
    assert len(log.read_text().splitlines()) >= 1
