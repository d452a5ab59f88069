"""The command line as a client of a Batchmill server, over HTTP.

Owns: the calls that submit, status, results, cancel and retry make, and the translation of what can go
wrong into one message with its mend. Knows nothing of databases.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from batch.domain.errors import BatchmillError, InvalidRequest, NotFound, Unauthenticated, Unavailable
from batch.settings import load_settings

Json = dict[str, Any]


class Server:
    """One server; use as a context manager. Raises BatchmillError with a message for people."""

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        settings = load_settings(server=url, api_key=api_key)
        self.url = settings.server.rstrip("/").removesuffix("/v1")
        key = settings.api_key.get_secret_value() if settings.api_key else None
        self._has_key = key is not None
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(60.0, connect=5.0),
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def upload(self, path: Path) -> Json:
        """Store the file as batch input; streams from disk."""
        with path.open("rb") as source:
            form: dict[str, Any] = {
                "data": {"purpose": "batch"}, "files": {"file": (path.name, source, "application/jsonl")},
            }  # fmt: skip
            try:
                return self._json("POST", "/v1/files", **form, timeout=None)
            except InvalidRequest as error:
                raise InvalidRequest(f"{error.message}\nwhat is wrong with it: batchmill check {path}") from None

    def create_batch(self, body: Json) -> Json:
        return self._json("POST", "/v1/batches", json=body)

    def batch(self, batch_id: str) -> Json:
        return self._json("GET", f"/v1/batches/{batch_id}")

    def explanation(self, batch_id: str) -> Json:
        """The batch with everything that a person needs to see why it stands where it stands."""
        return self._json("GET", f"/v1/batches/{batch_id}/explanation")

    def batches(self, limit: int) -> list[Json]:
        """The newest `limit` batches, paged as the server allows."""
        found: list[Json] = []
        after: str | None = None
        while len(found) < limit:
            params: dict[str, Any] = {"limit": min(100, limit - len(found))}
            if after:
                params["after"] = after
            page = self._json("GET", "/v1/batches", params=params)
            found += page["data"]
            if not page.get("has_more") or not page["data"]:
                break
            after = page["data"][-1]["id"]
        return found

    def act(self, batch_id: str, verb: str) -> Json:
        """`verb` is cancel or retry."""
        return self._json("POST", f"/v1/batches/{batch_id}/{verb}", json={})

    def providers(self) -> list[Json]:
        return list(self._json("GET", "/v1/providers")["data"])

    def family_lines(self, batch_id: str, *, errors: bool) -> Iterator[bytes]:
        """The answers (or what is still without one) of a batch and its retries together, streamed."""
        with self._stream(f"/v1/batches/{batch_id}/family", {"errors": "true" if errors else "false"}) as response:
            yield from response.iter_bytes(1 << 20)

    def results_after(self, batch_id: str, after: int) -> tuple[list[bytes], int, bool]:
        """Result lines so far, past the cursor: (lines, next cursor, whether the batch has ended)."""
        response = self._send("GET", f"/v1/batches/{batch_id}/results", params={"after": after, "limit": 1_000})
        lines = [line for line in response.content.split(b"\n") if line]
        cursor = int(response.headers.get("x-next-after", after + len(lines)))
        return lines, cursor, response.headers.get("x-incomplete", "true").lower() == "false"

    def _json(self, method: str, path: str, **options: Any) -> Json:
        response = self._send(method, path, **options)
        try:
            data = response.json()
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise Unavailable(f"{self.url} does not answer like a Batchmill server; is --server right?")
        return data

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.is_error:
            raise self._refused(response)
        return response

    @contextmanager
    def _stream(self, path: str, params: dict[str, str]) -> Iterator[httpx.Response]:
        try:
            with self._http.stream("GET", path, params=params, timeout=httpx.Timeout(300.0, connect=5.0)) as response:
                if response.is_error:
                    response.read()
                    raise self._refused(response)
                yield response
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: httpx.HTTPError) -> Unavailable:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return Unavailable(
                f"no server answers at {self.url}\nstart one with: batchmill up   or name another: --server URL"
            )
        if isinstance(error, httpx.UnsupportedProtocol):
            return Unavailable(f"--server {self.url}: not a URL; it looks like http://127.0.0.1:8484")
        return Unavailable(f"{self.url} did not finish its answer ({type(error).__name__}); try again")

    def _refused(self, response: httpx.Response) -> BatchmillError:
        message = _message_of(response)
        if response.status_code == 401:
            mend = (
                "the key given by --api-key or BATCHMILL_API_KEY is not valid there"
                if self._has_key
                else "give a key with --api-key or BATCHMILL_API_KEY (batchmill admin keys create makes one)"
            )
            return Unauthenticated(f"{message}\n{mend}")
        if response.status_code == 404:
            return NotFound(f"{message}\nbatchmill status lists the batches of {self.url}")
        if response.status_code >= 500:
            return Unavailable(f"{message} (HTTP {response.status_code} from {self.url})")
        return InvalidRequest(message)


def _message_of(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason_phrase}"
