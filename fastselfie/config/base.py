"""The base class and the types of all sections of the configuration."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

# Free[T]: a key that a resumed run may change, because it changes nothing that is learned.
FREE_TO_CHANGE = "a resumed run may change this key"
Key = TypeVar("Key")
Free = Annotated[Key, FREE_TO_CHANGE]

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Text = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]


class Section(BaseModel):
    """A frozen section of the configuration. Unknown keys and wrong types are errors."""

    # Strict: "3" is not 3. Values are validated as JSON, where a list may become a tuple.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
