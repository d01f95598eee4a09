"""The figures of a run, and findings on how it goes, as text."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median

from fastselfie.report.charts import class_chance
from fastselfie.report.render import format_duration, format_rate
from fastselfie.runs.folder import RunFolder
from fastselfie.stage_names import FINETUNED, PRETRAIN, SUPERVISED

_RECENT = 20  # last lines of the log, for the current value rather than the mean of days
_MAX_WAITING = 0.1  # share of the time
_LEARNS = 1.2  # times chance
_ROSE = 1.1  # times the lowest loss; less is noise
_LATE = 0.2  # share of the steps after which a network must be better than chance


@dataclass(frozen=True)
class Figure:
    """A number as text; `value` is None if the run does not have it yet."""

    name: str
    value: str | None
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """A sentence on how the run goes: good news, or something to look at."""

    good: bool
    text: str


def figures_of(run: RunFolder) -> list[Figure]:
    """Return the figures at the top of a page, by which runs are compared."""
    chance = class_chance(run)
    rates = _values(run, "images_per_s")
    waiting = _values(run, "waiting")[-_RECENT:]
    points, seconds = _points_gained(run), run.summary.get("seconds")
    return [
        _measured(run, "pretext accuracy, held out", PRETRAIN, "pretext_accuracy",
                  f"chance {1 / run.config.masked:.1%}"),
        _measured(run, "k-NN on P's features", PRETRAIN, "knn", _before(run, "knn")),
        _measured(run, "linear probe on P's features", PRETRAIN, "linear_probe",
                  _before(run, "linear_probe")),
        _measured(run, "finetuned, top-1", FINETUNED, "top1",
                  "" if points is None else f"{points:+.1f} points over from scratch"),
        _measured(run, "supervised from scratch, top-1", SUPERVISED, "top1",
                  "" if chance is None else f"chance {chance:.1%}"),
        Figure("images a second, pretraining", format_rate(median(rates)) if rates else None),
        Figure("of the time waiting for data", f"{mean(waiting):.1%}" if waiting else None,
               "pretraining, last log lines"),
        Figure("in total", format_duration(seconds) if isinstance(seconds, int | float) else None),
    ]  # fmt: skip


def findings_of(run: RunFolder) -> list[Finding]:
    """Return what a glance should tell: whether the run learns, and what slows it."""
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


def _points_gained(run: RunFolder) -> float | None:
    """Return the gain of finetuning over the control; None before both have finished."""
    ours, control = run.last("finetuned", "top1"), run.last("supervised", "top1")
    if ours is None or control is None or not run.state().finished:
        return None
    return 100 * (ours - control)


def _learns(run: RunFolder) -> Finding | None:
    accuracy, chance = run.last("pretrain", "pretext_accuracy"), 1 / run.config.masked
    if accuracy is None:
        return None
    share = f"{accuracy:.1%} of the masked patches are identified"
    if accuracy > _LEARNS * chance:
        return Finding(True, f"{share}: {accuracy / chance:.1f} times chance.")
    done = run.logs["pretrain"][-1]["step"]
    if done < _LATE * run.config.pretrain.steps:
        return None
    advice = "which is near chance: try another pretrain.lr."
    return Finding(False, f"After {done:,} steps {share}, {advice}")


def _settles(run: RunFolder) -> Finding | None:
    """Compare the held-out loss with its lowest value."""
    losses = [(line["heldout_loss"], line["step"]) for line in run.logs["pretrain"]
              if "heldout_loss" in line]  # fmt: skip
    if not losses:
        return None
    (lowest, at), (last, _) = min(losses), losses[-1]
    if last <= _ROSE * lowest:
        return None
    text = f"The held-out pretext loss rose to {last:.3g}, from {lowest:.3g} at step {at:,}."
    return Finding(False, text)


def _gains(run: RunFolder) -> Finding | None:
    points = _points_gained(run)
    if points is None:
        return None
    text = f"Finetuned top-1 is {points:+.1f} points over training from scratch"
    return Finding(points > 0, f"{text}; a single run cannot tell how much is noise.")


def _waits(run: RunFolder) -> Finding | None:
    waiting = _values(run, "waiting")[-_RECENT:]
    if not waiting or mean(waiting) < _MAX_WAITING:
        return None
    text = f"Pretraining waits {mean(waiting):.0%} of its time for data"
    return Finding(False, f"{text}: `fastselfie profile` says what would help.")


def _leaves_out(run: RunFolder) -> Finding | None:
    """Report skipped steps and images, which the other figures do not show."""
    words = {"skipped_steps": "non-finite steps", "skipped": "unreadable images"}
    counts = {key: sum(run.last(stage, key) or 0 for stage in run.logs) for key in words}
    texts = [f"{counts[key]:,.0f} {what}" for key, what in words.items() if counts[key]]
    return Finding(False, f"Skipped: {' and '.join(texts)}.") if texts else None
