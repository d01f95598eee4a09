"""The training loop, once for both stages: data, step, log, evaluation, checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastselfie.data.loaders import Batch, Loader
from fastselfie.data.random import process_seed
from fastselfie.errors import Diverged
from fastselfie.system.console import say
from fastselfie.system.signals import Interrupted, Pending, deferred_signals
from fastselfie.system.trace_ranges import trace_range
from fastselfie.training.checkpoint import LATEST, newest_checkpoint
from fastselfie.training.checkpoint_writer import CheckpointWriter
from fastselfie.training.metrics_log import RunLog, Show, Window
from fastselfie.training.nonfinite import NonFiniteStep, dump_step
from fastselfie.training.state import Progress, Stage, checkpoint_state, go_on
from fastselfie.training.step import TrainStep

# Numbers to log after a step that is due for it.
Evaluate = Callable[[int], dict[str, float]]


def fit(
    stage: Stage,
    folder: Path,
    step: TrainStep,
    loader: Loader,
    evaluate: Evaluate,
    also_at: frozenset[int] = frozenset(),
    show: Show = lambda: None,
) -> dict[str, float]:
    """Train to the last step, from the newest good checkpoint in `folder` if there is one.

    also_at: steps to evaluate after, beside every eval_every-th
    and the last. show: called after each line of the log. Returns what `evaluate` said after the
    last step. Of several processes each calls it, and rank 0 alone reads and writes `folder`.

    Raises:
        UserError: no good checkpoint is left, or it is of another experiment; a loss or gradient
            is not finite; a checkpoint cannot be written.
        Interrupted: a signal came to any process; the step in progress was finished and saved.
    """
    settings, ranks = stage.settings, step.accelerator.ranks
    progress = Progress()
    found = ranks.broadcast_from_main(lambda: newest_checkpoint(folder, stage.kind))
    if found is not None:
        progress = go_on(stage, step, found)
    if progress.done >= settings.steps and not progress.evaluation_pending:
        return progress.metrics
    _say_what_differs(stage, step, loader, progress)
    consumed = progress.done * settings.batch_size
    with (
        RunLog(
            folder,
            stage.kind,
            settings.steps,
            progress.done,
            ranks.is_main,
            progress.evaluation_pending,
            stage.config,
            show,
        ) as log,
        deferred_signals() as pending,
        CheckpointWriter(folder, stage.config.checkpoint, progress.done, ranks.is_main) as saver,
        closing(loader.stream(consumed, settings.batch_size, ranks)) as batches,
    ):
        training = _Training(stage, step, loader, evaluate, also_at, progress, log, saver, pending)
        try:
            training.run(batches)
        except Interrupted as left:
            training.leave(128 + left.number)
            raise
    return progress.metrics


@dataclass
class _Training:
    """A stage between its first and its last step, and what it writes to.

    Of several processes each has one, and all call the same of its methods: those agree on every
    mistake and signal, or one would wait for the others for ever. Rank 0's alone writes.
    """

    stage: Stage
    step: TrainStep
    loader: Loader
    evaluate: Evaluate
    also_at: frozenset[int]
    progress: Progress
    log: RunLog
    saver: CheckpointWriter
    pending: Pending

    def __post_init__(self) -> None:
        self.ranks = self.step.accelerator.ranks
        # Images that every process knew to be bad before it took its part.
        self._known_bad = self.loader.skipped
        self._skipped_before = self.progress.skipped

    def run(self, batches: Iterator[Batch]) -> None:
        """Train to the end.

        Raises:
            Interrupted: at a whole step, or in what need not be whole: an evaluation, which is
                owed then, or the wait for a batch.
        """
        settings, progress = self.stage.settings, self.progress
        if progress.done == 0:
            self._evaluate()
        elif progress.evaluation_pending:
            self._evaluate()
            self._save()
        first, window = progress.done + 1, Window(progress.done)
        while progress.done < settings.steps:
            with window.waiting(), trace_range("waiting"):
                batch = self._next(batches)
            self.step(progress.done, batch)
            done = progress.done = progress.done + 1
            if self.step.accelerator.compile and done == first:
                say(f"{self.stage.kind}: compiled in {window.age():.0f} s")
                window = Window(done)  # start-up is not a rate of training
            with trace_range("logging"):
                self.log.advance(done)
            saves = done % settings.save_every == 0 or done == settings.steps
            if done % settings.log_every == 0 or saves:
                with trace_range("logging"):
                    self._write_means(window)
            if done % settings.eval_every == 0 or done in self.also_at or done == settings.steps:
                with window.paused():
                    self._evaluate()
            if saves:
                self._save()
            if done < settings.steps:
                self._leave_together()
        with self.ranks.raise_together():
            self.saver.wait()
        self._leave_together()

    def leave(self, status: int) -> None:
        """Save where the run is, unless that is done. status: other processes' than rank 0."""
        with self.ranks.raise_together():
            self.saver.wait()
        if self.progress.done > self.ranks.broadcast_from_main(lambda: self.saver.written):
            self._stop_at_offence()
            self._save()
            with self.ranks.raise_together():
                self.saver.wait()
        say(
            f"{self.stage.kind}: left after step {self.progress.done}, saved up to step "
            f"{self.saver.written}"
        )
        self.ranks.exit_after_main(status)

    def _next(self, batches: Iterator[Batch]) -> Batch:
        with self.ranks.raise_together(), self._abandoning():
            self.saver.poll()
            batch = next(batches)
        if self.ranks.world > 1:  # each drops other units, alike in a resumed run
            seed, done = self.stage.config.seed, self.progress.done
            torch.manual_seed(process_seed(seed, done, self.ranks.rank))
        return batch

    def _abandoning(self) -> AbstractContextManager[None]:
        """See `Pending.abandoning`. Of several processes one must not leave the others there."""
        return self.pending.abandoning() if self.ranks.world == 1 else nullcontext()

    def _leave_together(self) -> None:
        """Where a signal came to any process: the same on all, after a whole step."""
        if number := self.ranks.largest(self.pending.number or 0):
            raise Interrupted(number)

    def _write_means(self, window: Window) -> None:
        self._stop_at_offence()  # this and the reading wait for the device
        means = self.step.read()
        values = window.close(self.progress.done, self.stage.settings.batch_size)
        if means.steps:
            values = {"loss": means.loss, "accuracy": means.accuracy, **values}
            if math.isfinite(means.norm):
                values |= {"grad_norm": means.norm, "grad_norm_max": means.largest_norm}
        if means.skipped:
            values["skipped_steps"] = means.skipped
        if skipped := self._known_bad + self._count_skipped():
            values["skipped"] = skipped
        with window.paused(), self.ranks.raise_together():
            self.log.write(self.progress.done, **values)

    def _count_skipped(self) -> int:
        """Images replaced since the run's first step."""
        own = self.loader.skipped - self._known_bad
        self.progress.skipped = self._skipped_before + int(self.ranks.summed(own)[0])
        return self.progress.skipped

    def _evaluate(self) -> None:
        done = self.progress.done
        self.progress.evaluation_pending = True
        with self._abandoning():
            metrics = self.evaluate(done)
        with self.ranks.raise_together():
            _require_finite(self.stage, done, metrics["heldout_loss"], self.saver.folder / LATEST)
        self.progress.metrics, self.progress.evaluation_pending = metrics, False
        with self.ranks.raise_together():
            self.log.write(done, **metrics)
            self.log.picture(done)

    def _save(self) -> None:
        metric_accumulators = self._unread()
        self._count_skipped()
        with self.ranks.raise_together():
            if self.ranks.is_main:
                self.saver.save(
                    checkpoint_state(self.stage, self.step, self.progress, metric_accumulators)
                )

    def _unread(self) -> list[dict[str, Tensor]]:
        """Of all processes, see `TrainStep.metric_accumulators`."""
        own = self.step.metric_accumulators()
        if self.ranks.world > 1:  # elsewhere a tensor of a GPU would come out on the same GPU
            own = {name: value.cpu() for name, value in own.items()}
        return self.ranks.gathered(own)

    def _stop_at_offence(self) -> None:
        """Refuse to go on once the guard has halted; waits for the device.

        Writes what `fastselfie replay` needs. The weights are still those before the offence.
        """
        nonfinite_step = self.step.guard.nonfinite_step()
        if nonfinite_step is None:
            return
        metric_accumulators = self._unread()
        samples = self.ranks.gathered(nonfinite_step.samples())
        with self.ranks.raise_together():
            if self.ranks.is_main:
                state = checkpoint_state(self.stage, self.step, self.progress, metric_accumulators)
                kept = dump_step(state, nonfinite_step, samples, self.saver.folder)
                raise Diverged(f"{_complaint(self.stage, nonfinite_step)}; {kept}")


def _complaint(stage: Stage, nonfinite_step: NonFiniteStep) -> str:
    what, value = ("loss", nonfinite_step.loss)
    if math.isfinite(value):
        what, value = "norm of the gradient", nonfinite_step.norm
    section = stage.sections[-1]
    return (
        f"{stage.kind}: the {what} is {value} at step {nonfinite_step.step + 1}: lower "
        f"{section}.lr ({stage.settings.lr}) or set {section}.clip_grad_norm"
    )


def _say_what_differs(stage: Stage, step: TrainStep, loader: Loader, progress: Progress) -> None:
    """Lines about passes, which batch norm sees, and about a resumed run that is another one."""
    world, size = step.accelerator.ranks.world, stage.settings.batch_size
    if step.micro_batch < size:
        over = f" over {world} processes" if world > 1 else ""
        say(
            f"{stage.kind}: batches of {size}{over} in passes of "
            f"{min(step.micro_batch, size // world)} images, which is what batch norm sees"
        )
    if progress.done and not loader.repeats:
        say(
            f"warning: {stage.kind}: resumed at step {progress.done}, but the random crops of "
            f"data.loader={stage.config.data.loader} cannot be repeated: from here on the run is "
            "not the one that would have gone on"
        )


def _require_finite(stage: Stage, step: int, loss: float, path: Path) -> None:
    """Refuse to go on, and to save over a good checkpoint, once the loss is NaN or infinite."""
    if math.isfinite(loss):
        return
    section = stage.sections[-1]
    before = f"; {path} is from before" if path.exists() else ""
    raise Diverged(
        f"{stage.kind}: the loss is {loss} at step {step}: lower {section}.lr ({stage.settings.lr})"
        f" or set {section}.clip_grad_norm{before}"
    )
