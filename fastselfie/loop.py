"""The training loop, once for both stages: data, step, log, evaluation, checkpoint, resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastselfie.checkpoint import (
    LATEST,
    Checkpoint,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
)
from fastselfie.config import Config, StageConfig, differing_keys
from fastselfie.data.loaders import Batch, Loader
from fastselfie.errors import UserError
from fastselfie.guard import NONFINITE, Offence, random_state, set_random_state
from fastselfie.interrupt import Interrupted, Pending, deferred_signals
from fastselfie.log import RunLog, say
from fastselfie.phases import phase
from fastselfie.saver import Saver
from fastselfie.step import TrainStep

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
        """Whether `state`, of this stage and read from `path`, is of this very experiment.

        Raises:
            UserError: another config or set of images, with what differs.
        """
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
    """Train to the last step, from the newest good checkpoint in `folder` if there is one.

    patches: N, or 1 for whole images. also_at: steps to evaluate after, beside every eval_every-th
    and the last. Returns what `evaluate` said after the last step.

    Raises:
        UserError: no good checkpoint is left, or it is of another experiment; a loss or gradient
            is not finite; a checkpoint cannot be written.
        Interrupted: a signal came; the step in progress was finished and saved.
    """
    settings = stage.settings
    progress = _Progress()
    if (found := newest_checkpoint(folder, stage.kind)) is not None:
        stage.check(found.state, found.path)
        progress = _restore(step, found)
    if progress.done >= settings.steps and not progress.owed:
        return progress.metrics
    if step.micro_batch < settings.batch_size:
        say(
            f"{stage.kind}: batches of {settings.batch_size} in passes of {step.micro_batch} "
            "images, which is what batch norm sees"
        )
    if progress.done and not loader.repeats:
        say(
            f"warning: {stage.kind}: resumed at step {progress.done}, but the random crops of "
            f"data.loader={stage.config.data.loader} cannot be repeated: from here on the run is "
            "not the one that would have gone on"
        )
    consumed = progress.done * settings.batch_size
    with (
        RunLog(folder, stage.kind, settings.steps, progress.done) as log,
        deferred_signals() as pending,
        Saver(folder, stage.config.checkpoint, progress.done) as saver,
        closing(loader.train(consumed, settings.batch_size, patches)) as batches,
    ):
        training = _Training(stage, step, evaluate, also_at, progress, log, saver, pending)
        try:
            training.run(batches, loader)
        except Interrupted:
            training.leave()
            raise
    return progress.metrics


@dataclass
class _Progress:
    """How far a stage is.

    done: whole steps. metrics: of the last evaluation. owed: the one due now is not finished.
    """

    done: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    owed: bool = False


@dataclass(frozen=True)
class _Training:
    """A stage between its first and its last step, and what it writes to."""

    stage: Stage
    step: TrainStep
    evaluate: Evaluate
    also_at: frozenset[int]
    progress: _Progress
    log: RunLog
    saver: Saver
    pending: Pending

    def run(self, batches: Iterator[Batch], loader: Loader) -> None:
        """Train to the end.

        Raises:
            Interrupted: at a whole step, or in what need not be whole: an evaluation, which is
                owed then, or the wait for a batch.
        """
        settings, progress = self.stage.settings, self.progress
        if progress.done == 0:
            self._evaluate()
        elif progress.owed:
            self._evaluate()
            self._save()
        first, window = progress.done + 1, _Window(progress.done)
        while progress.done < settings.steps:
            with window.waiting(), phase("waiting"), self.pending.abandoning():
                batch = next(batches)
            self.step(progress.done, batch)
            done = progress.done = progress.done + 1
            if self.step.machine.compile and done == first:
                say(f"{self.stage.kind}: compiled in {window.age():.0f} s")
                window = _Window(done)  # start-up is not a rate of training
            with phase("logging"):
                self.log.advance(done)
            self.saver.poll()
            saves = done % settings.save_every == 0 or done == settings.steps
            if done % settings.log_every == 0 or saves:
                with phase("logging"):
                    self._write_means(window, loader.skipped)
            if done % settings.eval_every == 0 or done in self.also_at or done == settings.steps:
                with window.paused():
                    self._evaluate()
            if saves:
                self._save()
        self.saver.wait()
        self.pending.leave()

    def leave(self) -> None:
        """Save where the run is, unless that is done."""
        self.saver.wait()
        if self.progress.done > self.saver.written:
            self._stop_at_offence()
            self._save()
            self.saver.wait()
        say(
            f"{self.stage.kind}: left after step {self.progress.done}, saved up to step "
            f"{self.saver.written}"
        )

    def _write_means(self, window: _Window, skipped: int) -> None:
        self._stop_at_offence()  # this and the reading wait for the device
        means = self.step.read()
        values = window.close(self.progress.done, self.stage.settings.batch_size)
        if means.steps:
            values = {"loss": means.loss, "accuracy": means.accuracy, **values}
        if means.skipped:
            values["skipped_steps"] = means.skipped
        if skipped:
            values["skipped"] = skipped
        self.log.write(self.progress.done, **values)

    def _evaluate(self) -> None:
        done = self.progress.done
        self.progress.owed = True
        with self.pending.abandoning():
            metrics = self.evaluate(done)
        _require_finite(self.stage, done, metrics["heldout_loss"], self.saver.folder / LATEST)
        self.progress.metrics, self.progress.owed = metrics, False
        self.log.write(done, **metrics)

    def _save(self) -> None:
        self.saver.save(_state(self.stage, self.step, self.progress))

    def _stop_at_offence(self) -> None:
        """Refuse to go on once the guard has halted; waits for the device.

        Writes what `fastselfie replay` needs. The weights are still those before the offence.
        """
        offence = self.step.guard.offence()
        if offence is None:
            return
        kind, number = self.stage.kind, offence.step + 1
        what, value = ("loss", offence.loss)
        if math.isfinite(value):
            what, value = "norm of the gradient", offence.norm
        path = self.saver.folder / f"nonfinite-{number:07d}.pt"
        record = _record(self.stage, self.step, self.progress, offence)
        try:
            save_checkpoint(path, record)
            kept = f"`fastselfie replay {path}` runs that step again"
        except OSError as error:
            kept = f"{path} could not be written ({error.strerror})"
        section = self.stage.sections[-1]
        raise UserError(
            f"{kind}: the {what} is {value} at step {number}: lower {section}.lr "
            f"({self.stage.settings.lr}) or set {section}.clip_grad_norm; {kept}"
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


def _state(stage: Stage, step: TrainStep, progress: _Progress) -> dict[str, Any]:
    return {
        "kind": stage.kind,
        "images": stage.images,
        "step": progress.done,
        "micro_batch": step.micro_batch,
        "config": json.dumps(stage.config.model_dump(mode="json")),
        "model": step.model.state_dict(),
        "optimizer": step.optimizer.state_dict(),
        "scaler": step.scaler.state_dict(),
        "random": random_state(step.machine.device),
        "unread": step.unread(),
        "metrics": progress.metrics,
        "owed": progress.owed,
    }


def _restore(step: TrainStep, found: Checkpoint) -> _Progress:
    """Put a state into the step: weights, optimiser, scaler and torch's own random state."""
    state = found.state
    load_weights(step.model, state["model"], found.path)
    step.optimizer.load_state_dict(state["optimizer"])
    if state["scaler"] and step.scaler.is_enabled():  # empty where it was saved without fp16
        step.scaler.load_state_dict(state["scaler"])
    step.micro_batch = state["micro_batch"]
    step.go_on_from(state["unread"])
    set_random_state(state["random"], step.machine.device)
    return _Progress(state["step"], state["metrics"], state["owed"])


def _record(stage: Stage, step: TrainStep, progress: _Progress, offence: Offence) -> dict[str, Any]:
    """What the offence began from. Its samples are unknown only if nobody read for too long."""
    record = {**_state(stage, step, progress), "kind": NONFINITE, "stage": stage.kind}
    record["step"] = offence.step
    if offence.before is not None:
        samples, epochs = map(torch.from_numpy, offence.before.samples)
        record.update(random=offence.before.random, samples=samples, epochs=epochs)
    return record
