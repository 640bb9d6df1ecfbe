#!/usr/bin/env bash
# pytrec_eval-terrier 0.5.11 and ranx 0.3.21: nDCG of the same tied ranking is 1.0 in one and 0.0 in the other.
#
# Every document has the same score, as under Hamming distances many have. trec_eval orders equal scores by the name of
# the document, descending. ranx keeps the order in which a run names them up to 15 documents, and orders them in
# another way from 16 on. Seen: with 15 documents nDCG@10 of the last one named is 1.000 in trec_eval and 0.000 in ranx;
# the first one named has 0.000 in trec_eval, and in ranx 1.000 of 15 documents and 0.000 of 16. A figure of a ranking
# with ties is one of many; their mean has a closed form (McSherry and Najork, 2008).
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


def ndcg(n: int, relevant: int) -> tuple[float, float]:
    names = [f"d{i:02}" for i in range(n)]
    qrels, run = {"q": {names[relevant]: 1}}, {"q": dict.fromkeys(names, 0.5)}
    trec = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)["q"]["ndcg_cut_10"]
    return round(trec, 3), round(float(evaluate(Qrels(qrels), Run(run), "ndcg@10")), 3)


seen = {(n, which): ndcg(n, which) for n in (15, 16) for which in (0, -1)}
for (n, which), (trec, ranx) in seen.items():
    print(f"{n} tied documents, {'first' if which == 0 else 'last'} one relevant: trec_eval {trec:.3f}, ranx {ranx:.3f}")
assert seen[15, 0] == (0.0, 1.0), "15 documents, the first"
assert seen[15, -1] == (1.0, 0.0), "15 documents, the last"
assert seen[16, 0] == (0.0, 0.0), "16 documents, the first"
PYTHON
