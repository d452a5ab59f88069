"""The wall behind which foreign HTTP errors become ours.

Owns: TransportFault and the table that translates every exception of httpx and pyreqwest into a
FailureKind. A test asserts that it is total.
May not touch: anything that sends. Texts hold no URL: a URL may hold what should not be shown.
"""

from __future__ import annotations

import httpx
from pyreqwest import exceptions as px

from batch.domain.outcome import FailureKind


class TransportFault(Exception):
    """A call without a complete HTTP answer. `sent` is False when nothing can have been charged."""

    def __init__(self, kind: FailureKind, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.sent = sent


# The first row with a class that fits decides; subclasses stand before their bases.
FAULTS: tuple[tuple[tuple[type[Exception], ...], FailureKind, str, bool], ...] = (
    ((px.ConnectTimeoutError, httpx.ConnectTimeout), FailureKind.CONNECT, "connecting took too long", False),
    ((px.PoolTimeoutError, httpx.PoolTimeout), FailureKind.CONNECT, "no connection became free in time", False),
    ((px.WriteTimeoutError, httpx.WriteTimeout), FailureKind.TIMEOUT, "sending took too long", True),
    ((px.RequestTimeoutError, httpx.TimeoutException), FailureKind.TIMEOUT, "no answer in time", True),
    ((px.ConnectError, httpx.ConnectError), FailureKind.CONNECT, "could not connect", False),
    ((httpx.ProxyError,), FailureKind.CONNECT, "the proxy refused", False),
    ((httpx.UnsupportedProtocol, httpx.InvalidURL), FailureKind.CONNECT, "not an http or https URL", False),
    ((httpx.LocalProtocolError,), FailureKind.CONNECT, "the request breaks HTTP", False),
    ((httpx.RemoteProtocolError,), FailureKind.DISCONNECT, "the server broke HTTP or closed without an answer", True),
    ((px.ReadError, httpx.ReadError), FailureKind.DISCONNECT, "the connection broke while reading", True),
    ((px.WriteError, httpx.WriteError), FailureKind.DISCONNECT, "the connection broke while sending", True),
    ((px.DecodeError, httpx.DecodingError), FailureKind.BAD_ANSWER, "the answer could not be decoded", True),
    ((px.RedirectError, httpx.TooManyRedirects), FailureKind.BAD_ANSWER, "the answer is a redirect", True),
    ((px.StatusError,), FailureKind.BAD_ANSWER, "the answer is an HTTP error", True),
    ((px.ClientClosedError,), FailureKind.DISCONNECT, "the client was closed", True),
    ((px.RequestPanicError,), FailureKind.DISCONNECT, "the HTTP client failed", True),
    ((px.BuilderError,), FailureKind.CONNECT, "the request could not be built: wrong URL, header or proxy", False),
    ((px.RequestError, httpx.HTTPError, httpx.StreamError), FailureKind.DISCONNECT, "the connection broke", True),
    ((px.PyreqwestError,), FailureKind.DISCONNECT, "the HTTP client failed", True),
    # Both raise a bare one for a URL or header that cannot be; its text may hold the header, so it is not told.
    ((ValueError,), FailureKind.CONNECT, "the request could not be built: wrong URL or header", False),
    ((OSError,), FailureKind.DISCONNECT, "the connection broke", True),
)
FOREIGN = (px.PyreqwestError, httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError)


def translate(error: Exception) -> TransportFault:
    """Our fault for a foreign one. `error` is one of FOREIGN."""
    inner = error.__cause__ if isinstance(error.__cause__, px.PyreqwestError) else error
    causes = _causes(inner)
    kind, message, sent = _corrected(inner, causes) or next(row[1:] for row in FAULTS if isinstance(inner, row[0]))
    told = causes[-1] if causes and "://" not in causes[-1] else ""
    return TransportFault(kind, f"{message} ({told[:200]})" if told else message, sent=sent)


def _corrected(error: BaseException, causes: list[str]) -> tuple[FailureKind, str, bool] | None:
    """pyreqwest calls all that happens before the answer's head a connect error; only its causes tell apart
    what came before the request went out. It also calls a body that broke off a decoding error."""
    was_connecting = any("(Connect)" in cause for cause in causes)
    if isinstance(error, px.ConnectTimeoutError) and causes and not was_connecting:
        return FailureKind.TIMEOUT, "no answer in time", True
    if isinstance(error, px.ConnectError) and causes and not was_connecting:
        return FailureKind.DISCONNECT, "the connection closed without an answer", True
    if isinstance(error, px.DecodeError) and any("reading a body from connection" in cause for cause in causes):
        return FailureKind.DISCONNECT, "the answer broke off", True
    return None


def _causes(error: BaseException) -> list[str]:
    """What pyreqwest tells of the causes, outermost first."""
    details = getattr(error, "details", None)
    causes = details.get("causes") if isinstance(details, dict) else None
    return [str(cause.get("message", "")) for cause in causes or ()]
