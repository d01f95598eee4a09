"""The training loop, once for both stages: data, step, log, evaluation, checkpoint, resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastselfie.checkpoint import load_checkpoint, load_weights, save_checkpoint
from fastselfie.config import Config, StageConfig, differing_keys
from fastselfie.data.loaders import Loader
from fastselfie.distributed import Ranks
from fastselfie.errors import UserError
from fastselfie.interrupt import Interrupted, deferred_signals
from fastselfie.log import RunLog, say
from fastselfie.phases import phase
from fastselfie.rng import process_seed
from fastselfie.step import TrainStep

LATEST = "latest.pt"

# Numbers to log after a step that is due for it.
Evaluate = Callable[[int], dict[str, float]]


@dataclass(frozen=True)
class Stage:
    """What makes one stage of a run, and what its checkpoint must agree with.

    kind: pretrain, finetuned or supervised. settings: those of the stage. sections: of the config,
    whose keys must not change over a resume, but for `unused` ones. images: the dataset's
    fingerprint.
    """

    kind: str
    config: Config
    settings: StageConfig
    sections: Sequence[str]
    images: str
    unused: Sequence[str] = ()

    def check(self, state: dict[str, Any], path: Path) -> None:
        """Whether `state`, read from `path`, is of this very experiment.

        Raises:
            UserError: another stage, config or set of images, with what differs.
        """
        if state["kind"] != self.kind:
            raise UserError(f"{path}: a checkpoint of stage {state['kind']}, not of {self.kind}")
        way_out = "set them back, or use --resume never or another --out"
        old, new = json.loads(state["config"]), self.config.model_dump(mode="json")
        differing = differing_keys(old, new, self.sections, self.unused)
        if differing:
            raise UserError(
                f"{path}: was trained with another config: {', '.join(differing)}: {way_out}"
            )
        if state["images"] != self.images:
            raise UserError(f"{path}: was trained or measured on other images: {way_out}")


def fit(
    stage: Stage,
    folder: Path,
    step: TrainStep,
    loader: Loader,
    evaluate: Evaluate,
    patches: int = 1,
    also_at: frozenset[int] = frozenset(),
) -> dict[str, float]:
    """Train to the last step, from the newest checkpoint in `folder` if there is one.

    patches: N, or 1 for whole images. also_at: steps to evaluate after, beside every eval_every-th
    and the last. Returns what `evaluate` said after the last step. Of several processes each calls
    it, and rank 0 alone reads and writes `folder`.

    Raises:
        UserError: the checkpoint is damaged or of another experiment; the loss is not finite.
        Interrupted: a signal came to any process; the step in progress was finished and saved.
    """
    settings, path, ranks = stage.settings, folder / LATEST, step.machine.ranks
    start, consumed = 0, 0
    final: dict[str, float] = {}
    state = ranks.from_leader(lambda: load_checkpoint(path) if path.exists() else None)
    if state is not None:
        _go_on(stage, step, state, path)
        start, consumed, final = state["step"], state["consumed"], state["metrics"]
    if start >= settings.steps:
        return final
    _say_passes(stage, step)
    found = loader.skipped  # by every process in the whole set, before it took its part
    with (
        RunLog(folder, stage.kind, settings.steps, start, ranks.leads) as log,
        deferred_signals() as pending,
        closing(loader.train(consumed, settings.batch_size, patches, ranks)) as batches,
    ):
        if start == 0:
            log.write(0, **evaluate(0))
        window = _Window(start)
        for done in range(start + 1, settings.steps + 1):
            with window.waiting(), phase("waiting"), ranks.as_one():
                batch = next(batches)
            if ranks.world > 1:  # each drops other units, alike in a resumed run
                torch.manual_seed(process_seed(stage.config.seed, done - 1, ranks.rank))
            step(done - 1, batch)
            if step.machine.compile and done == start + 1:
                say(f"{stage.kind}: compiled in {window.age():.0f} s")
                window = _Window(done)  # start-up is not a rate of training
            with phase("logging"):
                log.advance(done)
            ends = done == settings.steps
            left = ranks.largest(pending.number or 0)  # the same on all, or some would wait
            saves = done % settings.save_every == 0 or ends or left > 0
            if done % settings.log_every == 0 or saves:
                with phase("logging"):
                    means = step.read()  # waits for the device, so the clock is honest
                    with ranks.as_one():
                        _require_finite(stage, done, means.loss, path)
                    rates = window.close(done, settings.batch_size)
                    skipped = _skipped(loader, found, ranks)
                    log.write(done, loss=means.loss, accuracy=means.accuracy, **rates, **skipped)
            if done % settings.eval_every == 0 or done in also_at or ends:
                with window.paused():
                    final = evaluate(done)
                with ranks.as_one():
                    _require_finite(stage, done, final["heldout_loss"], path)
                log.write(done, **final)
            if saves:
                with ranks.as_one():
                    if ranks.leads:
                        save_checkpoint(path, _state(stage, step, done, final))
            if left and not ends:
                say(f"saved {path} after step {done}")
                ranks.wait_for_the_leaders_end()
                raise Interrupted(left)
    return final


def _go_on(stage: Stage, step: TrainStep, state: dict[str, Any], path: Path) -> None:
    """Check and restore `state`, which all processes have from `path`."""
    ranks = step.machine.ranks
    with ranks.as_one():
        stage.check(state, path)
        _restore(step, state, path)
    before = state.get("processes", 1)
    if before != ranks.world:
        say(
            f"{stage.kind}: was trained by {before} processes, goes on with {ranks.world}: in the "
            "same order of samples, but batch norm and dropout see them in other parts"
        )


def _skipped(loader: Loader, found: int, ranks: Ranks) -> dict[str, int]:
    """For the log. found: those that each process knew of before it took its part."""
    count = found + int(ranks.summed(loader.skipped - found)[0])
    return {"skipped": count} if count else {}


def _say_passes(stage: Stage, step: TrainStep) -> None:
    """How a batch is cut up, where it is: batch norm sees the pieces."""
    ranks, size = step.machine.ranks, stage.settings.batch_size
    if step.micro_batch < size:
        over = f" over {ranks.world} processes" if ranks.world > 1 else ""
        say(
            f"{stage.kind}: batches of {size}{over} in passes of "
            f"{min(step.micro_batch, size // ranks.world)} images, which is what batch norm sees"
        )


class _Window:
    """The time between two lines of the log, and how much of it went by waiting for data."""

    def __init__(self, step: int) -> None:
        self._begin(step)

    def _begin(self, step: int) -> None:
        self._step, self._waited, self._since = step, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is not training, evaluation for one, does not count."""
        asked = time.perf_counter()
        yield
        self._since += time.perf_counter() - asked

    def age(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._since

    def close(self, step: int, batch_size: int) -> dict[str, float]:
        """Images a second and the share of waiting since the last line; begins the next."""
        spent = self.age()
        rate, waiting = (step - self._step) * batch_size / spent, self._waited / spent
        self._begin(step)
        return {"images_per_s": rate, "waiting": waiting}


def _require_finite(stage: Stage, step: int, loss: float, path: Path) -> None:
    """Refuse to go on, and to save over a good checkpoint, once the loss is NaN or infinite."""
    if math.isfinite(loss):
        return
    section = stage.sections[-1]
    before = f"; {path} is from before" if path.exists() else ""
    raise UserError(
        f"{stage.kind}: the loss is {loss} at step {step}: lower {section}.lr ({stage.settings.lr})"
        f" or set {section}.clip_grad_norm{before}"
    )


def _state(stage: Stage, step: TrainStep, done: int, final: dict[str, float]) -> dict[str, Any]:
    random: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if step.machine.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(step.machine.device)
    return {
        "kind": stage.kind,
        "images": stage.images,
        "step": done,
        "consumed": done * stage.settings.batch_size,
        "micro_batch": step.micro_batch,
        "processes": step.machine.ranks.world,
        "config": json.dumps(stage.config.model_dump(mode="json")),
        "model": step.model.state_dict(),
        "optimizer": step.optimizer.state_dict(),
        "scaler": step.scaler.state_dict(),
        "random": random,
        "metrics": final,
    }


def _restore(step: TrainStep, state: dict[str, Any], path: Path) -> None:
    """Put `state` into the step: weights, optimiser, scaler and torch's own random state."""
    load_weights(step.model, state["model"], path)
    step.optimizer.load_state_dict(state["optimizer"])
    if state["scaler"] and step.scaler.is_enabled():  # empty where it was saved without fp16
        step.scaler.load_state_dict(state["scaler"])
    step.micro_batch = state["micro_batch"]
    torch.set_rng_state(state["random"]["cpu"])
    if step.machine.device.type == "cuda" and "cuda" in state["random"]:
        torch.cuda.set_rng_state(state["random"]["cuda"], step.machine.device)
