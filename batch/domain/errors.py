"""The tree of errors that Batchmill itself raises.

BatchmillError
├── InvalidRequest          the caller's input is wrong; names the place (param) and the mend
│   ├── InvalidValue            a field of the right type holds what cannot be
│   ├── InvalidConfiguration    batchmill.toml, a variable or a preset is wrong
│   └── UnknownModel            no configured provider serves the model
├── NotFound                no such file, batch, model, upload, key
├── Conflict                the object's state forbids it (never retryable)
├── Forbidden               the key may not do this
├── Unauthenticated         no key, or a wrong one
├── TooLarge                a body, file or part over its limit
├── RateLimited             a project's own limit; carries retry_after_s
└── Unavailable             the database, the broker or the blob store does not answer
HTTP statuses are decided in one table in api/errors.py; exit codes in cli/exits.py.
A provider's failure is a value (domain.outcome), never one of these.
"""

from __future__ import annotations


class BatchmillError(Exception):
    """Base of all; `code` is stable snake_case, `param` names the field at fault, if one is."""

    code: str = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidRequest(BatchmillError):
    code = "invalid_request"


class InvalidValue(InvalidRequest):
    code = "invalid_value"


class InvalidConfiguration(InvalidRequest):
    code = "invalid_configuration"


class UnknownModel(InvalidRequest):
    code = "model_not_found"


class NotFound(BatchmillError):
    code = "not_found"


class Conflict(BatchmillError):
    code = "conflict"


class Forbidden(BatchmillError):
    code = "forbidden"


class Unauthenticated(BatchmillError):
    code = "invalid_api_key"


class TooLarge(BatchmillError):
    code = "too_large"


class RateLimited(BatchmillError):
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class Unavailable(BatchmillError):
    code = "unavailable"
