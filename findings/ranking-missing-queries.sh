#!/usr/bin/env bash
# pytrec_eval-terrier 0.5.11 and ranx 0.3.21: a query with grades and no results counts in one mean, not in the other.
#
# Grades of documents that are not in the corpus count as missed in both, as they should: with one of two relevant
# documents found recall is 0.5. A query that has grades but no results is left out by pytrec_eval, whose mean is 0.500,
# and counts as 0 in ranx with make_comparable=True, which it asks for: 0.250. BEIR has such data: qrels of ArguAna name
# documents that its corpus lacks.
# Passes while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    pytrec_eval-terrier==0.5.11 ranx==0.3.21 numpy==2.4.6 numba==0.68.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import pytrec_eval
from ranx import Qrels, Run, evaluate

qrels = {"asked": {"there": 1, "gone": 1}, "nobody": {"there": 1}}
run = {"asked": {"there": 1.0, "other": 0.5}}
values = pytrec_eval.RelevanceEvaluator(qrels, {"recall.10"}).evaluate(run)
trec = sum(value["recall_10"] for value in values.values()) / len(values)
ranx = float(evaluate(Qrels(qrels), Run(run), "recall@10", make_comparable=True))
print(f"recall@10: pytrec_eval {trec:.3f} over {len(values)} query, ranx {ranx:.3f}")
assert (trec, ranx) == (0.5, 0.25), "the means agree now"
PYTHON
