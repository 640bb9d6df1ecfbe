"""Training from the command line: what it prints, what it leaves, and what an interruption leaves."""

from __future__ import annotations

import re
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
    text = " ".join(done.stdout.split())
    record = QamaIndex.load(folder / "corpus.qama").quantizer.fit_record.training
    assert record.kept
    after, before = (side["adc"]["nDCG@10"] for side in (record.trained, record.untrained))
    assert after > 1.2 * before
    assert "quantizer 2x18, PCA + ITQ rotation, Lloyd-Max, linear adapter trained, fitted in " in text
    training = re.search(
        rf"training 4 epochs in \d+ s; kept the trained quantizer: nDCG@10 \+{100 * record.gain:.1f} % in the mean "
        rf"of the stages on the held-out queries that chose the epoch: codes {after:.3f} \(untrained {before:.3f}\)"
        ", .* loss",
        text,
    )
    lines = done.stdout.splitlines()
    assert lines[-2].startswith("wrote")
    relevance = [line for line in lines if line.startswith("on 100 held-out queries")][-1]
    assert relevance.split()[4:] == "nDCG@10 relevant@10 MRR@10 % of float 95 % interval".split()
    start = lines.index(relevance)
    quality = [float(re.search(r"\d\.\d{4}", line)[0]) for line in lines[start + 1 : start + 4]]
    assert quality[2] > 1.2 * max(quality[:2])
    assert lines[start + 2].startswith("codes only, untrained")
    # Queries about documents that were trained on and queries about others: their mean is that of all.
    kinds = re.search(r"trained on \((\d+)\)  others \((\d+)\)", lines[start + 5])
    weights = [int(kinds[1]), int(kinds[2])]
    assert sum(weights) == 100
    apart = [[float(value) for value in line.split()[-2:]] for line in lines[start + 6 : start + 9]]
    np.testing.assert_allclose(np.average(apart, axis=1, weights=weights), quality, atol=1e-4)
    inspected = run("inspect", "corpus.qama", cwd=folder).stdout
    assert training[0] in " ".join(inspected.split())
    assert max(map(len, [*inspected.splitlines(), *lines])) <= 80
    assert not (folder / "corpus.qama.training").exists()
    assert [line["epoch"] for line in record.log] == [1, 2, 3, 4]


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
