"""What a process of step.py does. It is sent to that process, which then imports torch."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass

BASELINE = "straightforward"


@dataclass(frozen=True)
class StepJob:
    """One contender: the config it runs and how."""

    name: str
    config: str
    overrides: tuple[str, ...]
    batch: int
    threads: int
    ready: int = 2

    def images(self, batch: int) -> int:
        return batch

    def stream(self) -> Generator[int]:
        """Take a step, wait for it, say how many images it had."""
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `fastselfie train` sets it
        from fastselfie.config.load import load_config
        from support.step_contenders import build_ours, build_straightforward

        build = build_straightforward if self.name == BASELINE else build_ours
        take = build(load_config(self.config, list(self.overrides)))
        while True:
            take()
            yield self.batch
