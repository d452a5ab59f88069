"""One call to one provider, as an Outcome. No retry, no sleep, no bodies in logs.

Owns: the URL, the headers with the key, reading the answer (JSON, SSE, an error inside a 200), captured
headers, request id and the provider's own cost; scrubbing every configured key from error texts.
May not touch: what is asked (completions/), whether it is asked again (domain.retry), the pace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from batch.clock import SYSTEM_CLOCK, Clock
from batch.completions.fold import FoldError, fold_stream
from batch.completions.normalise import error_in_body
from batch.domain.outcome import Failure, FailureKind, Outcome, Success
from batch.providers.catalog import Catalog
from batch.providers.classify import classify
from batch.providers.engine_load import LOAD_HEADER
from batch.providers.error_shapes import ErrorView, read_error
from batch.providers.faults import TransportFault
from batch.providers.headers import RATE_PREFIXES
from batch.providers.provider import Provider
from batch.providers.transport import Transport, UpstreamRequest, UpstreamResponse, make_transport
from batch.settings import Settings

KEY_REREAD_S = 5.0
REQUEST_ID_HEADERS = ("x-request-id", "x-modelux-request-id", "request-id", "apim-request-id", "x-generation-id")
MIN_SECRET = 6  # shorter keys are no secrets, and masking them would tear texts apart
_LISTS = {"/chat/completions": "choices", "/embeddings": "data"}


def make_adapter(catalog: Catalog, name: str, settings: Settings, clock: Clock = SYSTEM_CLOCK) -> Adapter:
    """An adapter with a transport of its own; close() ends both. To be made on the loop that uses it."""
    provider = catalog.providers[name]
    transport = make_transport(settings.transport, provider, settings, clock)
    return Adapter(provider, transport, clock, secrets=catalog.secrets)


class Adapter:
    """Calls one provider through one transport. Safe for any number of calls at once on one event loop."""

    def __init__(
        self, provider: Provider, transport: Transport, clock: Clock, *, secrets: Callable[[], Iterable[str]]
    ) -> None:
        self.provider = provider
        self._transport = transport
        self._clock = clock
        self._secrets = secrets
        self._headers: dict[str, str] = {}
        self._headers_until = -1.0
        self._key_problem = ""
        self._own_key = ""  # the one that answers could repeat; "" when too short to be told from text
        self._urls: dict[tuple[str | None, str], str] = {}
        self._captured = tuple(name.removesuffix("*") for name in provider.preset.capture_headers)
        self._aliases = provider.preset.header_aliases
        self._cost_source = provider.preset.cost

    async def call(self, path: str, body: bytes, *, base_url: str | None = None, stream: bool = False) -> Outcome:
        """One exchange. `path` is "/chat/completions" (a leading "/v1" is dropped); `body` is sent as it is.

        `base_url` picks a replica. `stream`: SSE was asked for. Never raises for anything that the network or the
        provider does.
        """
        started = self._clock.monotonic()
        if started >= self._headers_until:
            self._read_key(started)
        if self._key_problem:
            return Failure(FailureKind.BAD_KEY, self._key_problem, sent=False)
        url = self._urls.get((base_url, path)) or self._remember_url(base_url, path)
        request = UpstreamRequest(url, self._headers, body, self.provider.config.timeout_s, stream)
        try:
            response = await self._transport.send(request)
        except TransportFault as fault:
            return Failure(
                fault.kind,
                self._scrub(fault.message.encode()).decode(),
                sent=fault.sent,
                latency_s=self._clock.monotonic() - started,
            )
        latency_s = self._clock.monotonic() - started
        if response.status == 200:
            return self._read_answer(path, request, response, latency_s)
        return self._fail(request, response, latency_s, read_error(self._scrub(response.body), response.status))

    async def get(self, url: str, timeout_s: float) -> UpstreamResponse | None:
        """A page of the provider's own server: health, metrics, models. None when nothing came."""
        headers = {"accept": "*/*", **self.provider.auth_headers()}
        try:
            return await self._transport.send(UpstreamRequest(url, headers, b"", timeout_s, method="GET"))
        except TransportFault:
            return None

    async def close(self) -> None:
        await self._transport.close()

    # the request

    def _read_key(self, now: float) -> None:
        """The key is read anew every few seconds, so that a mended file is seen without a restart."""
        provider = self.provider
        key = provider.api_key()
        place = provider.missing_key or provider.key_id.partition(":")[2]
        self._key_problem = ""
        if key is None and provider.key_id != "none":
            self._key_problem = f"no key for {provider.name}: set {place}"
        elif key is not None and not (key.isascii() and key.isprintable()):
            self._key_problem = f"the key for {provider.name} in {place} holds characters that no header can carry"
        else:
            headers = {"content-type": "application/json", "accept": "application/json"}
            self._headers = headers | provider.auth_headers()
            self._own_key = key if key and len(key) >= MIN_SECRET else ""
        self._headers_until = now + KEY_REREAD_S

    def _remember_url(self, base_url: str | None, path: str) -> str:
        if base_url is None and not self.provider.base_urls:
            raise ValueError(f"provider {self.provider.name} has no address: is its engine running?")
        url = join_url(base_url or self.provider.base_urls[0], path)
        self._urls[base_url, path] = url
        return url

    # the answer

    def _read_answer(
        self, path: str, request: UpstreamRequest, response: UpstreamResponse, latency_s: float
    ) -> Outcome:
        received = response.body
        if received[:1].isspace():  # keep-alive blank lines before the object
            received = received.strip()
        kind = response.headers.get("content-type", "no content-type")
        data: Any
        if kind.startswith("text/event-stream"):
            try:
                data = fold_stream(received)
            except FoldError as broken:
                if broken.error is None:
                    return self._bad_answer(response, latency_s, str(broken))
                return self._fail_in_200(request, response, latency_s, broken.error)
            received = orjson.dumps(data)
        else:
            try:
                data = orjson.loads(received)
            except orjson.JSONDecodeError:
                message = f"HTTP 200 that is no JSON ({kind[:80]}, {len(response.body)} bytes)"
                return self._bad_answer(response, latency_s, message)
        if not isinstance(data, dict):
            return self._bad_answer(response, latency_s, "HTTP 200 with JSON that is no object")
        error = error_in_body(data)
        if error is not None:
            return self._fail_in_200(request, response, latency_s, error)
        expected = _LISTS.get(path.removeprefix("/v1"))
        if expected is not None and not data.get(expected):
            return self._bad_answer(response, latency_s, f"HTTP 200 without {expected}")
        captured, rates = self._pick_headers(response.headers)
        return Success(
            status=200,
            body=received,
            data=data,
            headers=captured,
            rate_headers=rates,
            request_id=self._request_id(response.headers),
            latency_s=latency_s,
            cost_usd=self._cost(response.headers, data),
        )

    def _pick_headers(self, headers: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        rates: dict[str, str] = {}
        captured: dict[str, str] = {}
        allowed = self._captured
        for name, value in headers.items():
            if name.startswith(RATE_PREFIXES) or name == LOAD_HEADER:
                rates[name] = self._without_key(value)
            elif allowed and name.startswith(allowed):
                captured[name] = self._without_key(value)
        for name, other in self._aliases.items():
            if name in captured:
                captured.setdefault(other, captured[name])
        return captured, rates

    def _cost(self, headers: Mapping[str, str], data: dict[str, Any]) -> float | None:
        source = self._cost_source
        if source is None:
            return None
        value: Any = headers.get(source.header) if source.header else None
        if source.usage:
            usage = data.get("usage")
            value = usage.get(source.usage) if isinstance(usage, dict) else None
        try:
            dollars = float(value) * source.scale if value is not None else -1.0
        except (TypeError, ValueError):
            return None
        return dollars if 0 <= dollars < 1e6 else None

    # failures

    def _fail(
        self, request: UpstreamRequest, response: UpstreamResponse, latency_s: float, view: ErrorView
    ) -> Failure:
        asked_schema = b'"response_format"' in request.body
        failure = classify(
            response.status, response.headers, view, self.provider.preset,
            now=self._clock.now(), asked_schema=asked_schema,
        )  # fmt: skip
        if failure.kind is FailureKind.BAD_KEY:
            self._headers_until = -1.0
        if failure.kind is FailureKind.BUDGET:
            failure.scope = budget_scope(request.body)
        if response.status in (404, 405) or 300 <= response.status < 400:
            failure.message += _address_hint(request.url, failure)
        return self._complete(failure, response, latency_s)

    def _fail_in_200(
        self, request: UpstreamRequest, response: UpstreamResponse, latency_s: float, error: Mapping[str, Any]
    ) -> Failure:
        """An error that came as HTTP 200: its inner code decides."""
        view = read_error(self._scrub(orjson.dumps({"error": dict(error)})))
        return self._fail(request, response, latency_s, view)

    def _bad_answer(self, response: UpstreamResponse, latency_s: float, message: str) -> Failure:
        failure = Failure(FailureKind.BAD_ANSWER, message, status=response.status)
        return self._complete(failure, response, latency_s)

    def _complete(self, failure: Failure, response: UpstreamResponse, latency_s: float) -> Failure:
        failure.headers, failure.rate_headers = self._pick_headers(response.headers)
        failure.request_id = self._request_id(response.headers)
        failure.latency_s = latency_s
        return failure

    def _request_id(self, headers: Mapping[str, str]) -> str | None:
        for name in REQUEST_ID_HEADERS:
            if found := headers.get(name):
                return self._without_key(found)
        return None

    def _without_key(self, value: str) -> str:
        """One header's value; cheap enough for every answer, since a provider knows no key but its own."""
        return value.replace(self._own_key, "[key]") if self._own_key and self._own_key in value else value

    def _scrub(self, text: bytes) -> bytes:
        for secret in self._secrets():
            if len(secret) >= MIN_SECRET:
                text = text.replace(secret.encode(), b"[key]")
        return text


def join_url(base_url: str, path: str) -> str:
    """The base as written plus the endpoint: ".../v1" + "/chat/completions". A query of the base stays last."""
    base, mark, query = base_url.partition("?")
    endpoint = path.removeprefix("/v1")
    joined = base.rstrip("/") + (endpoint if endpoint.startswith("/") else f"/{endpoint}")
    return f"{joined}{mark}{query}"


def budget_scope(body: bytes) -> str | None:
    """Whose budget a call draws on, as the request shows it: "end_user:alice", "tags:team=x", or None."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    user = request.get("mlx:end_user")
    if isinstance(user, str) and user:
        return f"end_user:{user}"
    tags = request.get("mlx:tags")
    if isinstance(tags, dict) and tags:
        return "tags:" + ",".join(f"{name}={tags[name]}" for name in sorted(tags))
    return None


def _address_hint(url: str, failure: Failure) -> str:
    """For answers about the address, not about the model: where it was looked for, and what may be missing."""
    if failure.code and "model" in failure.code:
        return ""
    place = url.partition("?")[0]
    return f" (at {place})" if "/v1" in place else f" (at {place}: does base_url lack /v1?)"
