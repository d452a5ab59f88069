"""What a batch may ask for beyond OpenAI's own fields: the `options` object.

Owns: each option's name, type, range and default, and how a wrong one is explained.
May not touch: which providers exist (operations.create_batch asks the catalog).
"""

from __future__ import annotations

import difflib
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from batch.domain.errors import InvalidRequest
from batch.settings import MAX_ATTEMPTS, SCHEMA_RETRIES


class BatchOptions(BaseModel):
    """Validated options; `stored` is what the batch row keeps: only what was given."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    priority: Literal["high", "normal", "low"] = "normal"
    max_attempts: int = Field(default=MAX_ATTEMPTS, ge=1, le=100)
    schema_retries: int = Field(default=SCHEMA_RETRIES, ge=0, le=20)
    on_invalid_line: Literal["fail", "error_file"] = "fail"
    on_unsupported: Literal["emulate", "reject", "drop"] = "emulate"
    budget_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_failure_share: float | None = Field(default=None, gt=0, le=1)
    providers: list[str] | None = Field(default=None, min_length=1, max_length=32)  # fallback order: NAME or NAME/model
    defaults: dict[str, Any] = {}  # body keys merged where a line has none
    dedupe: bool = False
    order: Literal["input", "prefix"] | None = None  # of sending; None: prefix for engines. Files keep input order
    webhook_url: str | None = Field(default=None, max_length=2000, pattern=r"^https?://[^\s]+$")
    grow_max_tokens: bool = False

    @field_validator("defaults")
    @classmethod
    def not_the_line_itself(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in ("messages", "input", "stream", "stream_options"):
            if key in value:
                raise ValueError(f"'{key}' cannot be a default")
        return value

    @classmethod
    def parse(cls, given: Any) -> Self:
        """From the request's JSON (None means no options). Raises InvalidRequest naming `options.KEY`."""
        if given is None:
            return cls()
        if not isinstance(given, dict):
            raise InvalidRequest(
                "Invalid type for 'options': expected an object.", param="options", code="invalid_type"
            )
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise _explained(error) from None

    @property
    def stored(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True)


def _explained(error: ValidationError) -> InvalidRequest:
    item = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(["options", *(str(part) for part in item["loc"])])
    if item["type"] == "extra_forbidden":
        match = difflib.get_close_matches(str(item["loc"][-1]), BatchOptions.model_fields, n=1, cutoff=0.5)
        hint = f" Did you mean '{match[0]}'?" if match else ""
        return InvalidRequest(f"Unknown parameter: '{place}'.{hint}", param=place, code="unknown_parameter")
    kind = "invalid_type" if item["type"].endswith("_type") else "invalid_value"
    detail = item["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"Invalid value for '{place}': {detail}.", param=place, code=kind)
