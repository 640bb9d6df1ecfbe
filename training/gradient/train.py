"""The training loop: from a quantizer without training to a trained one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from faiss_qama.arrays import Floats
from faiss_qama.progress import progress
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.fit_record import Quality, TrainingRecord
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.training import trellis_points
from faiss_qama.training.closed_form import fit_decoder
from faiss_qama.training.gradient import losses
from faiss_qama.training.gradient.batches import Batch, Batches
from faiss_qama.training.gradient.checkpoint import Journal
from faiss_qama.training.gradient.model import Model
from faiss_qama.training.gradient.trellis_values import LossOfDecoded, train_values
from faiss_qama.training.gradient.validation import Validation
from faiss_qama.training.published import code_losses
from faiss_qama.training.published.pruning import entropy
from faiss_qama.training.split import Split
from faiss_qama.training.train_config import SCORE_LOSSES, STAGES, TrainConfig, interpolate

Tensors: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]  # queries, documents, grades, and the scores of the floats
DECODER_DOCUMENTS = 20_000  # that a decoder is fitted to
AVERAGING = 0.99  # momentum of the averaged parameters: steps are noisy, because thresholds are


def train(start: Quantizer, split: Split, config: TrainConfig, ends: list[int], seed: int) -> Quantizer:
    """Train from a quantizer without training.

    Parameters
    ----------
    start : Quantizer
        From :func:`~faiss_qama.training.closed_form.closed_form`.
    split : Split
        Documents, queries and pairs to train on, and the validation queries.
    config : TrainConfig
        Settings of the training.
    ends : list of int
        Component counts of the prefixes to optimise, ascending; the last is all components.
    seed : int
        Seed of batches, of weights, and of stochastic thresholds.

    Returns
    -------
    Quantizer
        The quantizer of the best epoch. ``fit_record.training`` has the log, and ``kept`` there says whether it is
        better than ``start``.

    Raises
    ------
    OSError
        If the checkpoint cannot be written.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    batches = Batches(split, config, start.metric, seed)
    validation = Validation(split, start.metric, ends)
    model = Model(start, split.train, config, ends).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    xq, x, _, teacher = tensors(model, batches[0], device)
    model.match(xq, x, teacher)
    averaged = AveragedModel(model, avg_fn=_average)
    current = cast(Model, averaged.module)

    # Begin, or resume.
    arrays, settings = start.to_state()
    settings |= {"train": config.to_dict(), "ends": ends, "seed": seed}
    folder = None if config.checkpoint is None else Path(config.checkpoint)
    journal = Journal(folder, settings, [*arrays.values(), *split.arrays()])
    best = journal.resume({"model": model, "averaged": averaged}, optimizer)

    untrained = validation.quality(start)
    for epoch in range(len(journal.log), config.epochs):
        if _is_over(journal.log, config):
            break
        sums: Counter[str] = Counter()
        started, diverged = time.perf_counter(), False
        bar = progress(
            range(epoch * config.steps_per_epoch, (epoch + 1) * config.steps_per_epoch), f"epoch {epoch + 1}"
        )
        for step in bar:
            # Where in the schedules this step is; a seed of its own makes a resumed training go the same way.
            done = step / config.steps
            torch.manual_seed(seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min((step + 1) / (config.warmup_steps + 1), 1 - done)

            # Forward, in bfloat16 on a GPU, except for the teacher, whose order that would blur.
            batch = tensors(model, batches[step], device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                parts = batch_losses(model, batch, done, epoch)
                loss = torch.stack(list(parts.values())).sum()
            diverged = not bool(torch.isfinite(loss))
            if diverged:
                break

            # Backward.
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
            optimizer.step()

            # Update what follows the data, not the gradient.
            model.follow(partial(batches.documents, step))
            averaged.update_parameters(model)
            sums.update({name: float(part.detach()) / config.steps_per_epoch for name, part in parts.items()})
            if step % 10 == 0:
                bar.set_postfix(loss=f"{float(loss.detach()):.4f}")

        # After an epoch: prune, measure the validation queries, log, keep.
        statistics = model.prune(current, (epoch + 1) / config.epochs)
        quantizer = _frozen(current, split.train)
        quality, reference = validation.quality(quantizer), untrained
        if quantizer.layout != start.layout:  # at as many components
            reference = validation.quality(start.truncate(quantizer.layout.components))
        gain = validation.gain(quality, reference)
        line = {
            "epoch": epoch + 1,
            "losses": dict(sums),
            "trained": quality,
            "untrained": reference,
            "gain": gain,
            "better": gain > 0 and validation.never_worse(quality, reference),
            "diverged": diverged,
            "temperature": interpolate(config.temperature, done),
            "learning_rate": optimizer.param_groups[0]["lr"],
            "seconds": time.perf_counter() - started,
            **statistics,
        }
        if best is None or line is _best([*journal.log, line], config):
            best = {name: tensor.detach().clone() for name, tensor in current.state_dict().items()}
        journal.append(line, {"model": model, "averaged": averaged}, best, optimizer)

    assert best is not None
    model.load_state_dict(best)
    line = _best(journal.log, config)
    loss_of_decoded, started = partial(_loss_of_decoded, model, batches, device), time.perf_counter()
    quantizer, quality = _decoded_better(
        _frozen(model, split.train), line["trained"], model, validation, loss_of_decoded
    )
    gain = validation.gain(quality, line["untrained"])
    record = TrainingRecord(
        kept=gain > 0 and validation.never_worse(quality, line["untrained"]),
        adapter=config.adapter,
        measure=validation.measure,
        untrained=line["untrained"],
        trained=quality,
        gain=gain,
        seconds=sum(line["seconds"] for line in journal.log) + time.perf_counter() - started,
        log=journal.log,
    )
    return replace(quantizer, fit_record=replace(start.fit_record, training=record))


def _decoded_better(
    quantizer: Quantizer, quality: Quality, model: Model, validation: Validation, loss: LossOfDecoded
) -> tuple[Quantizer, Quality]:
    """Return a quantizer of this ``quality`` with trained points, if it is trellis-coded and they are better."""
    scored = any(name.startswith("adc.") and weights[1] > 0 for name, weights in model.config.losses.items())
    if quantizer.trellis is None or not scored:
        return quantizer, quality
    trained = train_values(quantizer, model, loss)
    own = validation.quality(trained)
    better = validation.gain(own, quality) > 0 and validation.never_worse(own, quality)
    return (trained, own) if better else (quantizer, quality)


def batch_losses(model: Model, batch: Tensors, done: float, epoch: int) -> dict[str, Tensor]:
    """Return the weighted losses of a batch's :func:`tensors` by name, when ``done`` of the training is over."""
    config = model.config
    weights = {name: interpolate(weight, done) for name, weight in config.losses.items()}
    xq, x = batch[:2]
    temperature = interpolate(config.temperature, done)
    queries, documents = model.code_queries(xq, temperature), model.code_documents(x, temperature)
    decoded = model.decode(documents.bits) if config.decodes else []

    parts: dict[str, Tensor] = {}
    by_stage: dict[str, Callable[[], list[Tensor]]] = {
        "float": lambda: model.float_scores(queries, documents),
        "hamming": lambda: model.hamming_scores(queries, documents),
        "adc": lambda: model.adc_scores(xq, decoded),
    }
    for stage in STAGES:
        if any(weights.get(f"{stage}.{loss}", 0.0) > 0 for loss in SCORE_LOSSES):
            parts |= _score_losses(model, stage, zip(model.slice_weights, by_stage[stage](), strict=True), batch, done)

    z = documents.z / model.spread
    of_codes: dict[str, Callable[[], Tensor]] = {
        "information_bottleneck": lambda: code_losses.information_bottleneck(z),
        "orthogonality": lambda: code_losses.orthogonality(z, model.column_ends),
        "variance": lambda: code_losses.variance(z, done),
        "quantization": lambda: code_losses.quantization(documents.u, done),
        "balance": lambda: code_losses.balance(documents.bits, model.bit_shares),
        "decorrelation": lambda: code_losses.decorrelation(documents.bits, model.same_unit),
        "reconstruction": lambda: code_losses.reconstruction(decoded[-1], x),
    }
    for name, code_loss in of_codes.items():
        if weights.get(name, 0.0) > 0:
            parts[name] = weights[name] * code_loss()
    if model.pruning is not None:
        parts["entropy"] = min(0.1, 0.01 * epoch) * entropy(torch.sigmoid(documents.u[..., 0] / temperature))
        parts["pruning"] = model.pruning.loss(model.thresholds / model.spread[:, None])
    return parts


def _score_losses(
    model: Model, stage: str, by_slice: Iterable[tuple[float, Tensor]], batch: Tensors, done: float
) -> dict[str, Tensor]:
    """Return the weighted losses of scores (nq, n), of prefixes with their weights, by name."""
    _, _, grades, teacher = batch
    temperature, slices = interpolate(model.config.score_temperature, done), list(by_slice)
    parts: dict[str, Tensor] = {}
    for loss in SCORE_LOSSES:
        weight = interpolate(model.config.losses.get(f"{stage}.{loss}", (0.0, 0.0)), done)
        if weight > 0:
            value = sum(own * losses.BY_NAME[loss](scores, teacher, grades, temperature) for own, scores in slices)
            parts[f"{stage}.{loss}"] = weight * torch.as_tensor(value)
    return parts


def _loss_of_decoded(
    model: Model, batches: Batches, device: torch.device, step: int, decode: Callable[[Floats], Tensor]
) -> Tensor:
    """Return the loss of the asymmetric scores of a batch, whose documents (n, d) ``decode`` encodes and decodes."""
    batch = batches[step]
    own = tensors(model, batch, device)
    scores = model.adc_scores(own[0], [decode(batch.documents)])
    parts = _score_losses(model, "adc", [(1.0, scores[0])], own, 1.0)
    return torch.stack(list(parts.values())).sum()


def tensors(model: Model, batch: Batch, device: torch.device) -> Tensors:
    """Return queries and documents as the model sees them, grades, and the scores of the floats.

    Pairs that do not count have the score -inf.
    """
    xq, x, grades, itself = (
        torch.from_numpy(a).to(device) for a in (batch.queries, batch.documents, batch.grades, batch.itself)
    )
    xq, x = xq / model.deviation, x / model.deviation
    return xq, x, grades, model.teacher(xq, x).masked_fill(itself, -torch.inf)


def _frozen(model: Model, x: Floats) -> Quantizer:
    """Return the quantizer of ``model``, with a decoder fitted to ``x`` if no loss has trained the decoder.

    Losses train the levels of first codes alone, so points of a trellis are fitted again, to the trained columns.
    """
    quantizer, decodes = model.frozen(), model.config.decodes
    if model.config.adapter == "none" or (decodes and quantizer.trellis is None):
        return quantizer
    x = x[:: -(-len(x) // DECODER_DOCUMENTS)]
    z, decoder = quantizer.transform(x), quantizer.decoder
    if quantizer.trellis is not None:
        quantizer = replace(quantizer, trellis=trellis_points.fit(z, quantizer.layout))
    if decodes:
        return quantizer
    levels = bit_packing.levels(quantizer.encode(x), quantizer.layout)
    parts = x, z, levels, decoder.offset, decoder.matrix, quantizer.layout
    return replace(quantizer, decoder=fit_decoder(*parts, "least-squares"))


def _average(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
    """Return the moving average of a parameter after ``steps`` steps, which forgets fast at first."""
    return current.lerp(averaged, min(AVERAGING, (1 + int(steps)) / (10 + int(steps))))


def _best(log: list[dict[str, Any]], config: TrainConfig) -> dict[str, Any]:
    """Return the epoch of the greatest gain, of those that no stage lost in if there are any.

    With pruning it is the last, whose code is the shortest.
    """
    return log[-1] if config.pruning is not None else max(log, key=lambda line: (line["better"], line["gain"]))


def _is_over(log: list[dict[str, Any]], config: TrainConfig) -> bool:
    """Return whether training has diverged, or no epoch of the last ``patience`` was the best so far."""
    if not log or config.pruning is not None:
        return False
    return bool(log[-1]["diverged"]) or len(log) - _best(log, config)["epoch"] >= config.patience
