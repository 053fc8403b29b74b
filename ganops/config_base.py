"""What all sections of params.yaml are made of: types of values, and the class of a section."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Kimg = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Gain = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Byte = Annotated[int, Field(ge=0, le=255)]
Psi = Annotated[float, Field(ge=-2, le=2)]

FROM_SCRATCH = (
    "presets/from_scratch"  # train.init_from when training starts from random weights: DVC needs a file there
)

FEWEST = 10  # images that anything is measured of: neighbours of five, blocks that one can leave out


class Section(BaseModel):
    """What all sections share: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
