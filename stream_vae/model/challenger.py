"""A release on trial beside the current one: what `challenger.json` of a release store says."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Mode = Literal["shadow", "canary"]


class Challenger(BaseModel):
    """Which release is on trial, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    release: str
    mode: Mode
    """``shadow``: it scores alerts too, and nothing of that is published; ``canary``: it publishes a share of them."""
    share: float = Field(gt=0, le=1)
    """Of the alerts, chosen by their ids."""
    since: datetime
    reason: str = ""
