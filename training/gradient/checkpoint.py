"""The files of a training: a log of its epochs, and a checkpoint to resume from after an interruption."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from faiss_qama.storage import atomic_files

CHECKPOINT, LOG, LOCK = "checkpoint.safetensors", "log.jsonl", ".lock"


class Journal:
    """The log of a training, one dictionary per epoch, and its checkpoint.

    Parameters
    ----------
    folder : Path, optional
        Folder for ``CHECKPOINT``, one safetensors file written atomically, and ``LOG``. None keeps nothing.
    settings : dict of str to object
        Settings that the result depends on. A checkpoint of other settings or arrays is not resumed from.
    arrays : list of ndarray
        Data that the result depends on.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any], arrays: list[np.ndarray]) -> None:
        self.log: list[dict[str, Any]] = []
        self._folder = folder
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for array in arrays:
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._key = digest.hexdigest()

    def resume(self, modules: Mapping[str, nn.Module], optimizer: Optimizer) -> dict[str, Tensor] | None:
        """Restore ``modules``, ``optimizer`` and the log; return the best state, or None if there is no checkpoint."""
        if self._folder is None:
            return None
        tensors, metadata = _read(self._folder / CHECKPOINT)
        if metadata.get("training") != self._key:
            if metadata:
                old = (self._folder / CHECKPOINT).replace(self._folder / f"{CHECKPOINT}.old")
                warnings.warn(f"{old}: the checkpoint of another training; this one begins anew", stacklevel=2)
            self._write_log()
            return None
        for name, module in modules.items():
            module.load_state_dict(_under(f"{name}.", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimizer.", tensors).items():
            i, part = name.split(".", 1)
            state.setdefault(int(i), {})[part] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        self.log = json.loads(metadata["log"])
        self._write_log()
        return _under("best.", tensors)

    def append(
        self, line: dict[str, Any], modules: Mapping[str, nn.Module], best: dict[str, Tensor], optimizer: Optimizer
    ) -> None:
        """Log an epoch, and write the state after it; ``best`` is the best state so far."""
        self.log.append(line)
        if self._folder is None:
            return
        tensors = {f"best.{name}": t for name, t in best.items()}
        for name, module in modules.items():
            tensors |= {f"{name}.{part}": t for part, t in module.state_dict().items()}
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": torch.as_tensor(t) for name, t in state.items()}
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        metadata = {"training": self._key, "log": json.dumps(self.log)}
        with atomic_files.replacing(self._folder / CHECKPOINT) as part:
            part.write_bytes(safetensors.torch.save(tensors, metadata))
        self._write_log()

    def _write_log(self) -> None:
        assert self._folder is not None
        atomic_files.write_text(self._folder / LOG, "".join(json.dumps(line) + "\n" for line in self.log))


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Keep other processes from training in ``folder``. Raises OSError if one does already."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / LOCK, timeout=0):
            yield
    except filelock.Timeout:
        raise OSError(f"{folder}: another process is training here") from None


def discard(folder: Path) -> None:
    """Remove the files of a training that is over, whose log the quantizer has; the folder too, if nothing is left."""
    for name in (CHECKPOINT, LOG, LOCK):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a checkpoint; none if it is missing or, with a warning, damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except FileNotFoundError:
        return {}, {}
    except safetensors.SafetensorError as error:
        warnings.warn(f"{path}: a damaged checkpoint, so the training begins anew ({error})", stacklevel=2)
        return {}, {}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
