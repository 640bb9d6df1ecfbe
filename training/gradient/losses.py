"""The losses of scores, a function each. All return a scalar tensor to be minimised.

They compare scores of a batch's queries with its documents, larger meaning nearer:

- ``scores`` (nq, n): of the codes; asymmetric, Hamming, or of the columns before the thresholds
- ``teacher`` (nq, n): of the floats
- ``grades`` (nq, n): how relevant a document is to a query, 0 where it is not
- ``temperature`` : what softmaxes divide scores by

A pair that does not count (a document that stands in for a query, and itself) has the teacher's score -inf.
Losses of codes are in :mod:`faiss_qama.training.published.code_losses`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, sigmoid

NEAREST = 32  # documents of a query that correlation looks at
EXCLUDED = -1e4  # the score of a pair that does not count


def mse(scores: Tensor, teacher: Tensor, grades: Tensor, temperature: float) -> Tensor:
    """Squared difference of the similarities (QAMA, methodology, "similarity preservation")."""
    seen = teacher.isfinite()
    return (scores - teacher).masked_fill(~seen, 0).square().sum() / seen.sum().clamp(min=1)


def kl(scores: Tensor, teacher: Tensor, grades: Tensor, temperature: float) -> Tensor:
    """Symmetric Kullback-Leibler divergence of the softmaxes (QAMA, methodology)."""
    a, b = _log_softmax(scores, teacher, temperature), _log_softmax(teacher, teacher, temperature)
    return (_divergence(a, b) + _divergence(b, a)) / 2


def distillation(scores: Tensor, teacher: Tensor, grades: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teacher's softmax to ours (Hinton et al., arXiv 1503.02531, section 2)."""
    a, b = _log_softmax(scores, teacher, temperature), _log_softmax(teacher, teacher, temperature)
    return _divergence(a, b)


def rank(scores: Tensor, teacher: Tensor, grades: Tensor, temperature: float) -> Tensor:
    """Share of pairs of documents that change places, softly: sigmoid(10 difference) (QAMA, methodology, "rank").

    Of each query, the teacher's order is compared with ours for every document and the one that follows it there.
    """
    order = teacher.argsort(dim=1, descending=True)
    ours, theirs = scores.gather(1, order), teacher.gather(1, order)
    seen = theirs[:, 1:].isfinite()
    return (sigmoid(10 * (ours[:, 1:] - ours[:, :-1])) * seen).sum() / seen.sum().clamp(min=1)


def correlation(scores: Tensor, teacher: Tensor, grades: Tensor, temperature: float) -> Tensor:
    """How far ours are from a line through the teacher's, over the ``NEAREST`` documents of a query: 1 - Pearson's r.

    Recall is decided among these; a softmax looks at the one or two nearest documents, or at all the far ones. A factor
    and a shift a query change no ranking, and none of them changes this.
    """
    theirs, top = teacher.topk(min(NEAREST, teacher.shape[1]), dim=1)
    ours, seen = scores.gather(1, top), theirs.isfinite().to(scores.dtype)
    ours, theirs = (_centred(s.masked_fill(seen == 0, 0), seen) for s in (ours, theirs))
    # Within the root, because the root of 0, of a query whose scores are all the same, has no gradient.
    scale = (ours.square().sum(dim=1) * theirs.square().sum(dim=1) + 1e-16).sqrt()
    return 1 - ((ours * theirs).sum(dim=1) / scale).mean()


def contrastive(scores: Tensor, teacher: Tensor, grades: Tensor, temperature: float) -> Tensor:
    """InfoNCE (van den Oord et al., arXiv 1807.03748): the relevant documents against the batch, weighted by grade.

    For a query of no known relevant document its nearest one is that.
    """
    nearest = torch.zeros_like(teacher).scatter(1, teacher.argmax(dim=1, keepdim=True), 1.0)
    wanted = torch.where(grades.sum(dim=1, keepdim=True) > 0, grades, nearest)
    wanted = wanted / wanted.sum(dim=1, keepdim=True)
    # Relevant documents do not compete with each other: each is held against all that are not.
    logits = scores.masked_fill(teacher.isinf(), EXCLUDED) / temperature
    others = logits.masked_fill(wanted > 0, EXCLUDED / temperature).logsumexp(dim=1, keepdim=True)
    return (wanted * (torch.logaddexp(logits, others) - logits)).sum(dim=1).mean()


def _divergence(a: Tensor, b: Tensor) -> Tensor:
    return kl_div(a, b, reduction="batchmean", log_target=True)


def _centred(scores: Tensor, seen: Tensor) -> Tensor:
    """Return ``scores`` less the mean of those that are ``seen``, the others 0."""
    return (scores - (scores * seen).sum(dim=1, keepdim=True) / seen.sum(dim=1, keepdim=True).clamp(min=1)) * seen


def _log_softmax(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return log_softmax(scores.masked_fill(teacher.isinf(), EXCLUDED) / temperature, dim=1)


BY_NAME = {f.__name__: f for f in (mse, kl, distillation, rank, correlation, contrastive)}
