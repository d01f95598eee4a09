"""The training loop of every stage: data, step, log, evaluation, checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastselfie.data.draws import process_seed
from fastselfie.data.loaders import Batch, Loader
from fastselfie.errors import Diverged
from fastselfie.system.console import say
from fastselfie.system.signals import Interrupted, Pending, deferred_signals
from fastselfie.system.trace_ranges import trace_range
from fastselfie.training.checkpoint import LATEST
from fastselfie.training.checkpoint_writer import CheckpointWriter
from fastselfie.training.metrics_log import OnLogLine, RunLog, Window
from fastselfie.training.nonfinite import dump_step
from fastselfie.training.resume_check import resume_stage
from fastselfie.training.stage_state import Progress, Stage, checkpoint_state
from fastselfie.training.step import TrainStep

# Takes the number of whole steps done; returns the metrics to log, `heldout_loss` among them.
Evaluate = Callable[[int], dict[str, float]]


def fit(
    stage: Stage,
    folder: Path,
    step: TrainStep,
    loader: Loader,
    evaluate: Evaluate,
    also_at: frozenset[int] = frozenset(),
    on_log_line: OnLogLine = lambda: None,
) -> dict[str, float]:
    """Train to the last step, from the newest good checkpoint in `folder` if there is one.

    Every rank calls it. Only rank 0 reads and writes `folder`.

    Args:
        stage: what the checkpoints must agree with, and the settings.
        folder: for checkpoints, the log and the pictures.
        step: updates the network.
        loader: of the training images.
        evaluate: measures the network.
        also_at: steps to evaluate after, besides every `eval_every`-th and the last.
        on_log_line: called after each line of the log.

    Returns:
        The metrics that `evaluate` returned after the last step.

    Raises:
        UserError: no good checkpoint is left, or it is of another experiment; a loss or gradient
            is not finite; a checkpoint cannot be written.
        Interrupted: a rank received a signal; the step in progress was finished and saved.
    """
    settings, config, ranks = stage.settings, stage.config, step.accelerator.ranks
    progress = resume_stage(stage, step, folder)
    done, repeats = progress.done, progress.evaluation_pending
    if done >= settings.steps and not repeats:
        return progress.metrics
    _say_how_it_trains(stage, step, loader, progress)
    consumed = done * settings.batch_size
    with (
        RunLog(
            folder, stage.kind, settings.steps, done, ranks.is_main, repeats, config, on_log_line
        ) as log,
        deferred_signals() as pending,
        CheckpointWriter(folder, config.checkpoint, done, ranks.is_main) as writer,
        closing(loader.stream(consumed, settings.batch_size, ranks)) as batches,
    ):
        training = _Training(stage, step, loader, evaluate, also_at, progress, log, writer, pending)
        try:
            training.run(batches)
        except Interrupted as left:
            training.save_after_signal(128 + left.number)
            raise
    return progress.metrics


@dataclass
class _Training:
    """A stage in training, and what it writes to.

    Every rank has one and calls the same methods. The ranks agree on every error and signal, or one
    would wait for the others forever. Only rank 0 writes.
    """

    stage: Stage
    step: TrainStep
    loader: Loader
    evaluate: Evaluate
    also_at: frozenset[int]
    progress: Progress
    log: RunLog
    writer: CheckpointWriter
    pending: Pending

    def __post_init__(self) -> None:
        self.ranks = self.step.accelerator.ranks
        # Unreadable images that every rank knew of before it took its share.
        self._known_bad = self.loader.skipped
        self._skipped_before = self.progress.skipped

    def run(self, batches: Iterator[Batch]) -> None:
        """Train to the end.

        Raises:
            Interrupted: after a whole step, while waiting for a batch, or in an evaluation, which
                a resumed run repeats.
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
                window = Window(done)  # the time of compiling is not part of the throughput
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
                self._stop_if_signalled()
        with self.ranks.raise_together():
            self.writer.wait()
        self._stop_if_signalled()

    def save_after_signal(self, status: int) -> None:
        """Save the last step unless it is saved, and end the ranks other than 0.

        Args:
            status: exit status of the ranks other than 0.
        """
        with self.ranks.raise_together():
            self.writer.wait()
        if self.progress.done > self.ranks.broadcast_from_main(lambda: self.writer.written):
            self._stop_if_nonfinite()
            self._save()
            with self.ranks.raise_together():
                self.writer.wait()
        say(
            f"{self.stage.kind}: left after step {self.progress.done}, saved up to step "
            f"{self.writer.written}"
        )
        self.ranks.exit_after_main(status)

    def _next(self, batches: Iterator[Batch]) -> Batch:
        with self.ranks.raise_together(), self._abandonable():
            self.writer.poll()
            batch = next(batches)
        if self.ranks.world > 1:  # dropout differs between ranks, and repeats in a resumed run
            seed, done = self.stage.config.seed, self.progress.done
            torch.manual_seed(process_seed(seed, done, self.ranks.rank))
        return batch

    def _abandonable(self) -> AbstractContextManager[None]:
        """See `Pending.abandoning`; one of several ranks must not abandon work alone."""
        return self.pending.abandoning() if self.ranks.world == 1 else nullcontext()

    def _stop_if_signalled(self) -> None:
        """Raise Interrupted on every rank if any rank received a signal."""
        if number := self.ranks.largest(self.pending.number or 0):
            raise Interrupted(number)

    def _write_means(self, window: Window) -> None:
        self._stop_if_nonfinite()  # this and `read` wait for the device
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
        """Count the images that were replaced since the run's first step, on all ranks."""
        own = self.loader.skipped - self._known_bad
        self.progress.skipped = self._skipped_before + int(self.ranks.summed(own)[0])
        return self.progress.skipped

    def _evaluate(self) -> None:
        done = self.progress.done
        self.progress.evaluation_pending = True
        with self._abandonable():
            metrics = self.evaluate(done)
        with self.ranks.raise_together():
            loss, latest = metrics["heldout_loss"], self.writer.folder / LATEST
            if not math.isfinite(loss):  # before a good checkpoint is replaced
                hint = f"; {latest} is from before" if latest.exists() else ""
                raise _diverged(self.stage, done, "loss", loss, hint)
        self.progress.metrics, self.progress.evaluation_pending = metrics, False
        with self.ranks.raise_together():
            self.log.write(done, **metrics)
            self.log.picture(done)

    def _save(self) -> None:
        accumulators = self._metric_accumulators()
        self._count_skipped()
        with self.ranks.raise_together():
            if self.ranks.is_main:
                state = checkpoint_state(self.stage, self.step, self.progress, accumulators)
                self.writer.save(state)

    def _metric_accumulators(self) -> list[dict[str, Tensor]]:
        """Gather `TrainStep.metric_accumulators` of all ranks."""
        own = self.step.metric_accumulators()
        if self.ranks.world > 1:  # unpickled on rank 0, it would be on the GPU of its sender
            own = {name: value.cpu() for name, value in own.items()}
        return self.ranks.gathered(own)

    def _stop_if_nonfinite(self) -> None:
        """Raise Diverged if the guard has halted. Waits for the device.

        Writes the file that `fastselfie replay` reads. The weights are those before the step.
        """
        nonfinite_step = self.step.guard.nonfinite_step()
        if nonfinite_step is None:
            return
        before = nonfinite_step.before
        accumulators = self._metric_accumulators()
        samples = self.ranks.gathered(before and before.samples)
        with self.ranks.raise_together():
            if self.ranks.is_main:
                state = checkpoint_state(self.stage, self.step, self.progress, accumulators)
                hint = dump_step(state, nonfinite_step, samples, self.writer.folder)
                what, value = "loss", nonfinite_step.loss
                if math.isfinite(value):
                    what, value = "norm of the gradient", nonfinite_step.norm
                raise _diverged(self.stage, nonfinite_step.step + 1, what, value, f"; {hint}")


def _diverged(stage: Stage, step: int, what: str, value: float, hint: str) -> Diverged:
    section = stage.kind.section
    return Diverged(
        f"{stage.kind}: the {what} is {value} at step {step}: lower {section}.lr "
        f"({stage.settings.lr}) or set {section}.clip_grad_norm{hint}"
    )


def _say_how_it_trains(stage: Stage, step: TrainStep, loader: Loader, progress: Progress) -> None:
    """Say how batches are split; warn if a resumed run will differ from an uninterrupted one."""
    world, size = step.accelerator.ranks.world, stage.settings.batch_size
    if step.micro_batch < size:
        over = f" over {world} processes" if world > 1 else ""
        say(
            f"{stage.kind}: batches of {size}{over} in passes of "
            f"{min(step.micro_batch, size // world)} images, over which batch norm averages"
        )
    if progress.done and not loader.repeats:
        say(
            f"warning: {stage.kind}: resumed at step {progress.done}, but the random crops of "
            f"data.loader={stage.config.data.loader} cannot be repeated: from here on it differs "
            "from an uninterrupted run"
        )
