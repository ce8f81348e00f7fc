"""Training of a classifier of turns: epochs over batches; the best by a score on held-out turns is kept.

The state after each epoch lies in a folder until training ends, so that a stopped training goes on and ends
as an uninterrupted one would: shuffles and dropout depend on seed and epoch alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from selfemo.config import FitConfig
from selfemo.errors import EngineError, NotFiniteError
from selfemo.files import replacing, write_json
from selfemo.progress import Reporter, StopRequest
from selfemo.seeds import derive
from selfemo.training.checkpoints import read_state, write_state
from selfemo.training.protocol import learning_rate

Batch = TypeVar("Batch")
Epochs = list[dict[str, float]]
"""By epoch: loss, and score on the held-out turns."""
_FEW = 4
"""Steps of warm-up under which a line warns. BiosERC with 2 of 80, and betas of 0.9 and 0.999, said one label
for all; with 8, and betas of 0.9 and 0.95, it learned (docs/baselines.md). Which of both counts was not
measured."""
_HISTORY, _BEST = "epochs.json", "best.safetensors"


def fit_classifier(
    model: nn.Module,
    config: FitConfig,
    batches: Callable[[int], Sequence[Batch]],
    backward: Callable[[Batch], float],
    score: Callable[[], float] | None,
    *,
    seed: int,
    states: Path,
    label: str,
    reporter: Reporter,
    stop: StopRequest,
    factors: Sequence[tuple[Sequence[nn.Parameter], float]] = (),
    begin: Callable[[int], None] | None = None,
) -> Epochs:
    """Train a model in place; it ends with the weights of the best epoch by score (the first of equals).

    Args:
        batches: of an epoch (from 0): one an optimiser step; how many they are depends on the epoch alone.
        backward: accumulates the gradient of a batch's mean loss, and returns that.
        score: of the model as it is, on held-out turns; more is better. None: the last epoch is kept.
        states: the folder to go on from; it is deleted at the end.
        label: of the bar.
        factors: parameters whose learning rate is another one, and its factor.
        begin: called with each epoch before its batches are taken, for what depends on the model then.

    Raises:
        NotFiniteError: a loss or gradient is NaN or infinite.
        Stopped: `stop` was asked for; the epochs before are kept.
    """
    others = {id(p) for members, _ in factors for p in members}
    plain = [p for p in model.parameters() if p.requires_grad and id(p) not in others]
    groups = [(plain, 1.0), *((list(members), factor) for members, factor in factors)]
    optimizer = torch.optim.AdamW(
        [{"params": members} for members, _ in groups],
        lr=config.lr, betas=config.betas, weight_decay=config.weight_decay,
    )  # fmt: skip
    sizes = [len(batches(e)) for e in range(config.epochs)]
    total, history = sum(sizes), _resume(model, optimizer, states)
    if 0 < (warm := config.warmup * total) < _FEW:
        reporter.say(
            f"{label}: only {warm:.1f} of {total} steps are warm-up, and large first steps can undo what a "
            "model knows; if it gives one label to all, raise warmup"
        )
    with reporter.bar(label, total) as advance:
        advance(sum(sizes[: len(history)]))
        for epoch in range(len(history), config.epochs):
            if _ended(history, config.patience):
                break
            if begin:
                begin(epoch)
            torch.manual_seed(derive(seed, "dropout", epoch))
            model.train()
            losses, step = 0.0, sum(sizes[:epoch])
            for batch in batches(epoch):
                stop.check()  # not behind the last step: an epoch that is trained is scored and kept
                for group, (_, factor) in zip(optimizer.param_groups, groups, strict=True):
                    group["lr"] = factor * learning_rate(config, step, total)
                losses += _step(model, optimizer, config, lambda b=batch: backward(b), label, step)  # type: ignore[misc]
                step += 1
                advance(1)
            model.eval()
            with torch.no_grad():
                found = float(epoch) if score is None else score()
            history.append({"loss": losses / max(1, sizes[epoch]), "score": found})
            told = "" if score is None else f", weighted F1 {found:.4f} on held-out turns"
            loss = history[-1]["loss"]
            reporter.say(f"{label}: epoch {epoch + 1} of {config.epochs}, loss {loss:.3f}{told}")
            _keep(model, optimizer, history, states)
    load_trained(model, states / _BEST)
    shutil.rmtree(states, ignore_errors=True)
    return history


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: FitConfig,
    backward: Callable[[], float],
    label: str,
    step: int,
) -> float:
    loss = backward()
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm))
    if not torch.isfinite(torch.tensor([loss, norm])).all():
        raise NotFiniteError(
            f"{label}: loss {loss} or gradient {norm} is not finite at step {step + 1}; lower lr"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def best_epoch(history: Epochs) -> int:
    """The epoch (from 0) with the best score; the first of equals."""
    return max(range(len(history)), key=lambda e: (history[e]["score"], -e))


def _ended(history: Epochs, patience: int) -> bool:
    return bool(patience and history and len(history) - 1 - best_epoch(history) >= patience)


def save_trained(model: nn.Module, path: Path) -> None:
    """Write the parameters that are trained (EngineError: they cannot be written)."""
    held = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    with replacing(path, EngineError, also=(SafetensorError,)) as staging:
        save_file(held, staging)


def load_trained(model: nn.Module, path: Path) -> None:
    """Take what `save_trained` wrote (EngineError: it is damaged)."""
    held = _read(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(held[name])


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as e:
        raise EngineError(f"{path}: cannot be read ({e}); {_anew(path.parent)}") from None


def _keep(model: nn.Module, optimizer: torch.optim.Optimizer, history: Epochs, states: Path) -> None:
    """Write the state after an epoch; its history comes last, so that what it names is there."""
    if best_epoch(history) == len(history) - 1:
        save_trained(model, states / _BEST)
    write_state(model, optimizer, _state(states, len(history)))
    write_json(states / _HISTORY, history)
    for old in (_state(states, len(history) - 1), _state(states, len(history) - 1).with_suffix(".sha256")):
        old.unlink(missing_ok=True)


def _state(states: Path, epochs: int) -> Path:
    return states / f"epoch-{epochs}.safetensors"


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, states: Path) -> Epochs:
    """Load the state after the last epoch that was kept; [] of none (EngineError: it is damaged)."""
    try:
        history: Any = json.loads((states / _HISTORY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as e:
        raise EngineError(f"{states / _HISTORY}: cannot be read ({e}); {_anew(states)}") from None
    _read(states / _BEST)  # that it is whole is known before hours of training, not after them
    try:
        read_state(model, optimizer, _state(states, len(history)), str(next(model.parameters()).device))
    except EngineError as e:
        raise EngineError(f"{e}; {_anew(states)}") from None
    return list(history)


def _anew(states: Path) -> str:
    return f"delete {states} to begin anew"
