"""The names of a run's stages: on the command line, of folders and in checkpoints."""

from __future__ import annotations

from enum import Enum


class StageName(str, Enum):
    """A stage of a run. Its value is the name of the stage's folder and of its checkpoints' kind.

    `StageName("finetune")` is FINETUNED too: the config section has that name.
    """

    PRETRAIN = "pretrain"
    FINETUNED = "finetuned"
    SUPERVISED = "supervised"

    def __str__(self) -> str:
        return self.value

    @property
    def section(self) -> str:
        """The config section with the stage's settings: pretrain or finetune."""
        return "pretrain" if self is PRETRAIN else "finetune"

    @classmethod
    def _missing_(cls, value: object) -> StageName:
        if value == "finetune":
            return cls.FINETUNED
        raise ValueError(f"stage is {value!r}: it must be {', '.join(cls)} or finetune")


PRETRAIN, FINETUNED, SUPERVISED = StageName


def stages_to_run(choice: str) -> tuple[StageName, ...]:
    """The stages that `train --stage CHOICE` runs, in their order.

    Finetuning trains the control as well where `finetune.control` is true.

    Args:
        choice: pretrain, finetuned (or finetune), or all.

    Raises:
        ValueError: `choice` is something else.
    """
    if choice == "all":
        return PRETRAIN, FINETUNED
    if choice in (PRETRAIN, FINETUNED, "finetune"):
        return (StageName(choice),)
    raise ValueError(f"stage is {choice!r}: it must be pretrain, finetuned or all")
