"""The one training loop: from a closed-form quantizer to a trained one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from faiss_qama.progress import progress
from faiss_qama.quantizer import Quantizer
from faiss_qama.training import losses
from faiss_qama.training.batches import Batch, Batches
from faiss_qama.training.checkpoint import Journal
from faiss_qama.training.data import Draw
from faiss_qama.training.held_out import HeldOut, Quality
from faiss_qama.training.model import Model
from faiss_qama.training.train_config import SCORE_LOSSES, STAGES, TrainConfig, at

AVERAGING = 0.99  # what is kept is a moving average of the parameters: steps are noisy, because cuts are


@dataclass(frozen=True, eq=False)
class Training:
    """What a training led to.

    Parameters
    ----------
    quantizer : the best of the epochs on the held-out queries
    measure : what counts there
    closed_form, trained : what was measured there, of where it began and of ``quantizer``
    gain : how much better ``trained`` is in what counts, as a share
    log : what was logged, an epoch each
    """

    quantizer: Quantizer
    measure: str
    closed_form: Quality
    trained: Quality
    gain: float
    log: list[dict[str, Any]]


def train(
    start: Quantizer, drawn: Draw, config: TrainConfig, ends: list[int], seed: int, folder: Path | None = None
) -> Training:
    """Train from ``start``.

    Parameters
    ----------
    start : a quantizer in closed form
    drawn : documents, queries and pairs, and what is held out
    config : settings
    ends : numbers of components of the slices, ascending; the last is all of them
    seed : of batches, of weights, and of stochastic cuts
    folder : where the checkpoint and the log are kept, or None; an interrupted training goes on from there
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    batches = Batches(drawn, config, start.metric, seed)
    held_out = HeldOut(drawn, start.metric)
    model = Model(start, drawn.train, config, ends).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)

    # Begin, or go on.
    arrays, settings = start.to_state()
    settings |= {"train": asdict(config), "ends": ends, "seed": seed}
    journal = Journal(folder, settings, [drawn.train, drawn.train_qrels, *arrays.values()])
    model.match_hamming(*_coded(model, batches[0], device))
    averaged = AveragedModel(model, avg_fn=_average)
    current = cast(Model, averaged.module)
    modules: dict[str, nn.Module] = {"model": model, "averaged": averaged}
    best = journal.resume(modules, optimizer) or _copy(model)

    closed_form = held_out.quality(start)
    for epoch in range(len(journal.log), config.epochs):
        if _patience_is_over(journal.log, config.patience):
            break
        sums: Counter[str] = Counter()
        started = time.perf_counter()
        bar = progress(range(epoch * config.epoch_steps, (epoch + 1) * config.epoch_steps), f"epoch {epoch + 1}")
        for step in bar:
            # Where in the schedules this step is; a seed of its own makes a resumed training go the same way.
            done = step / config.steps
            torch.manual_seed(seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min((step + 1) / (config.warmup + 1), 1 - done)

            # Forward, in bfloat16 where there is a GPU.
            batch = batches[step]
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                parts = batch_losses(model, batch, done, epoch, device)
                loss = torch.stack(list(parts.values())).sum()

            # Backward.
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
            optimizer.step()

            # What follows the data rather than the gradient.
            model.follow(torch.from_numpy(batch.documents).to(device))
            averaged.update_parameters(model)
            sums.update({name: float(part.detach()) / config.epoch_steps for name, part in parts.items()})
            if step % 10 == 0:
                bar.set_postfix(loss=f"{float(loss.detach()):.4f}")

        # After an epoch: prune, look at the held-out queries, log, keep.
        statistics = {} if model.pruning is None else model.pruning.prune((epoch + 1) / config.epochs)
        quality = held_out.quality(current.frozen())
        line = {
            "epoch": epoch + 1,
            "losses": dict(sums),
            "held_out": quality,
            "gain": held_out.gain(quality, closed_form),
            "temperature": at(config.temperature, done),
            "learning_rate": optimizer.param_groups[0]["lr"],
            "seconds": time.perf_counter() - started,
            **statistics,
        }
        if line["gain"] > max([0.0, *(earlier["gain"] for earlier in journal.log)]):
            best = _copy(current)
        journal.append(line, modules, best, optimizer)

    model.load_state_dict(best)
    quantizer = model.frozen()
    quality = held_out.quality(quantizer)
    gain = held_out.gain(quality, closed_form)
    return Training(quantizer, held_out.measure, closed_form, quality, gain, journal.log)


def batch_losses(model: Model, batch: Batch, done: float, epoch: int, device: torch.device) -> dict[str, Tensor]:
    """Return the weighted losses of a batch by name, when ``done`` of the training is over."""
    config = model.config
    weights = {name: at(weight, done) for name, weight in config.losses.items()}
    xq, x, grades, teacher = _tensors(model, batch, device)
    temperature, score_temperature = at(config.temperature, done), at(config.score_temperature, done)
    queries, documents = model.code_queries(xq, temperature), model.code_documents(x, temperature)
    decoded = model.decode(documents.bits)

    parts = {}
    for stage in STAGES:
        wanted = [loss for loss in SCORE_LOSSES if weights.get(f"{stage}.{loss}", 0.0) > 0]
        if not wanted:
            continue
        if stage == "adc":
            by_slice = model.adc_scores(xq, decoded)
        else:
            by_slice = (model.hamming_scores if stage == "hamming" else model.float_scores)(queries, documents)
        for loss in wanted:
            function = losses.SCORE_LOSSES[loss]
            value = sum(
                weight * function(scores, teacher, grades, score_temperature)
                for weight, scores in zip(model.slice_weights, by_slice, strict=True)
            )
            parts[f"{stage}.{loss}"] = weights[f"{stage}.{loss}"] * torch.as_tensor(value)

    z = documents.z / model.spread
    code_losses: dict[str, Callable[[], Tensor]] = {
        "information_bottleneck": lambda: losses.information_bottleneck(z),
        "orthogonality": lambda: losses.orthogonality(z, model.column_ends),
        "variance": lambda: losses.variance(z, done),
        "quantization": lambda: losses.quantization(documents.u, done),
        "balance": lambda: losses.balance(documents.bits, model.bit_shares),
        "decorrelation": lambda: losses.decorrelation(documents.bits, model.same_unit),
        "reconstruction": lambda: losses.reconstruction(decoded[-1], x),
    }
    for name, code_loss in code_losses.items():
        if weights.get(name, 0.0) > 0:
            parts[name] = weights[name] * code_loss()
    if model.pruning is not None:
        parts["entropy"] = min(0.1, 0.01 * epoch) * losses.entropy(torch.sigmoid(documents.u[..., 0] / temperature))
        parts["pruning"] = model.pruning.loss(model.thresholds / model.spread[:, None])
    return parts


def _tensors(model: Model, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    xq, x, grades, itself = (
        torch.from_numpy(a).to(device) for a in (batch.queries, batch.documents, batch.grades, batch.itself)
    )
    return xq, x, grades, model.teacher(xq, x).masked_fill(itself, -torch.inf)


@torch.no_grad()
def _coded(model: Model, batch: Batch, device: torch.device) -> tuple[Any, Any, Tensor]:
    xq, x, _, teacher = _tensors(model, batch, device)
    temperature = model.config.temperature[0]
    return model.code_queries(xq, temperature), model.code_documents(x, temperature), teacher


def _average(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
    """Return the moving average of a parameter after ``steps`` steps, which forgets fast at first."""
    return current.lerp(averaged, min(AVERAGING, (1 + int(steps)) / (10 + int(steps))))


def _copy(model: Model) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _patience_is_over(log: list[dict[str, Any]], patience: int) -> bool:
    """Return whether no epoch of the last ``patience`` was the best so far."""
    if not log:
        return False
    gains = [line["gain"] for line in log]
    return len(log) - 1 - int(np.argmax(gains)) >= patience
