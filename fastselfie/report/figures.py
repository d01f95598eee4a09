"""The figures of a run, and the signs of how it goes, in words."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median

from fastselfie.report.charts import classes_of
from fastselfie.report.render import shown_rate, shown_time
from fastselfie.runs.folder import RunFolder
from fastselfie.stage_names import FINETUNED, PRETRAIN, SUPERVISED

_RECENT = 20  # lines of the log: what is so now, not on the average of days
_WAITS = 0.1  # of the time; more is worth a word
_CLEARLY = 1.2  # times chance
_ROSE = 1.1  # times the lowest; less is noise
_LATE = 0.2  # of the steps; a network that guesses by then has not begun to learn


@dataclass(frozen=True)
class Figure:
    """A number in words. value: None where the run has not come so far."""

    name: str
    value: str | None
    note: str = ""


@dataclass(frozen=True)
class Sign:
    """A line on how it goes. well: a thing to be glad of, or to look at."""

    well: bool
    text: str


def figures_of(run: RunFolder) -> list[Figure]:
    """The figures that stand on top and that runs are compared by."""
    classes = classes_of(run)
    rates = _values(run, "images_per_s")
    waiting = _values(run, "waiting")
    seconds = run.summary.get("seconds")
    return [
        _measured(run, "pretext accuracy, held out", PRETRAIN, "pretext_accuracy",
                  f"chance {1 / run.config.masked:.1%}"),
        _measured(run, "k-NN on P's features", PRETRAIN, "knn", _before(run, "knn")),
        _measured(run, "linear probe on P's features", PRETRAIN, "linear_probe",
                  _before(run, "linear_probe")),
        _measured(run, "finetuned, top-1", FINETUNED, "top1", _gain(run)),
        _measured(run, "supervised from scratch, top-1", SUPERVISED, "top1",
                  f"chance {1 / classes:.1%}" if classes else ""),
        Figure("images a second, pretraining", shown_rate(median(rates)) if rates else None),
        Figure("of the time waits for data", f"{mean(waiting[-_RECENT:]):.1%}" if waiting else None,
               "pretraining, last lines"),
        Figure("in all", shown_time(seconds) if isinstance(seconds, int | float) else None),
    ]  # fmt: skip


def signs_of(run: RunFolder) -> list[Sign]:
    """What a glance should tell: whether it learns, and what holds it back."""
    found = (check(run) for check in (_learns, _settles, _gains, _waits, _leaves_out))
    return [sign for sign in found if sign is not None]


def _measured(run: RunFolder, name: str, stage: str, key: str, note: str) -> Figure:
    value = run.last(stage, key)
    return Figure(name, None if value is None else f"{value:.1%}", note)


def _values(run: RunFolder, key: str) -> list[float]:
    return [line[key] for line in run.logs[PRETRAIN] if key in line]


def _before(run: RunFolder, key: str) -> str:
    first = run.first(PRETRAIN, key)
    return "" if first is None else f"random weights {first:.1%}"


def _gain(run: RunFolder) -> str:
    points = _points_gained(run)
    return "" if points is None else f"{points:+.1f} points against from scratch"


def _points_gained(run: RunFolder) -> float | None:
    """Of finetuning over the control; None before both are at their last step."""
    ours, control = run.last(FINETUNED, "top1"), run.last(SUPERVISED, "top1")
    if ours is None or control is None or not run.state().finished:
        return None
    return 100 * (ours - control)


def _learns(run: RunFolder) -> Sign | None:
    accuracy, chance = run.last(PRETRAIN, "pretext_accuracy"), 1 / run.config.masked
    if accuracy is None:
        return None
    if accuracy > _CLEARLY * chance:
        times = accuracy / chance
        return Sign(
            True, f"Of the holes {accuracy:.1%} are answered right: {times:.1f} times chance."
        )
    done = run.logs[PRETRAIN][-1]["step"]
    if done < _LATE * run.config.pretrain.steps:
        return None
    return Sign(False, f"After {done:,} steps {accuracy:.1%} of the holes are answered right, "
                       "which is guessing: try another pretrain.lr.")  # fmt: skip


def _settles(run: RunFolder) -> Sign | None:
    """The loss on images that training does not see, against its lowest."""
    losses = [(line["heldout_loss"], line["step"]) for line in run.logs[PRETRAIN]
              if "heldout_loss" in line]  # fmt: skip
    if not losses:
        return None
    (lowest, at), (last, _) = min(losses), losses[-1]
    if last <= _ROSE * lowest:
        return None
    return Sign(False, f"The held-out pretext loss rose to {last:.3g}, from {lowest:.3g} at step "
                       f"{at:,}.")  # fmt: skip


def _gains(run: RunFolder) -> Sign | None:
    points = _points_gained(run)
    if points is None:
        return None
    return Sign(points > 0, f"Finetuned top-1 is {points:+.1f} points against training from "
                            "scratch; one run does not tell by how much.")  # fmt: skip


def _waits(run: RunFolder) -> Sign | None:
    waiting = _values(run, "waiting")[-_RECENT:]
    if not waiting or mean(waiting) < _WAITS:
        return None
    return Sign(False, f"Pretraining waits {mean(waiting):.0%} of its time for data: `fastselfie "
                       "profile` tells what would move it.")  # fmt: skip


def _leaves_out(run: RunFolder) -> Sign | None:
    """What guards and loaders passed over, which nobody should learn from the figures alone."""
    words = {"skipped_steps": "steps that were not finite", "skipped": "images that are unreadable"}
    counts = {key: sum(run.last(stage, key) or 0 for stage in run.logs) for key in words}
    said = [f"{counts[key]:,.0f} {what}" for key, what in words.items() if counts[key]]
    return Sign(False, f"Left out: {' and '.join(said)}.") if said else None
