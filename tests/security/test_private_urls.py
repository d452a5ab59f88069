"""An own engine is not made to fetch addresses inside its network, however they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batch.operations.private_urls import find_private_url, is_private
from batch.storage import batches
from tests.harness.worlds import ingest, jsonl, make_world, request_line

PROVIDERS = {
    "mine": {"engine": "vllm", "base_url": "http://127.0.0.1:9/v1", "models": ["own"]},
    "acme": {"base_url": "https://api.acme.example.com/v1", "models": ["hosted"]},
}


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png", "http://localhost/a", "http://LOCALHOST./a", "http://[::1]:80/", "http://10.1.2.3/",
        "http://192.168.0.1/", "http://169.254.169.254/latest/meta-data/", "http://[fd00::1]/", "http://0.0.0.0/",
        "http://2130706433/", "http://0x7f.1/", "http://0177.0.0.1/", "http://127.1/", "http://[::ffff:10.0.0.1]/",
        "http://[64:ff9b::7f00:1]/", "http://[fe80::1%25eth0]/", "http://postgres:5432/", "http://db.internal/",
        "http://printer.local/", "http://user@127.0.0.1/", "http://example.com@127.0.0.1/", "file:///etc/passwd",
        "ftp://example.com/a", "gopher://example.com/", "//127.0.0.1/a", "http:\\\\127.0.0.1\\a",
        "http://[bad/", "", "x",
    ],
)  # fmt: skip
def test_addresses_inside_are_private_in_every_spelling(url: str) -> None:
    assert is_private(url)


@pytest.mark.parametrize(
    "url", ["https://example.com/a.png", "http://93.184.216.34/", "https://[2606:2800:220:1::1]/", "HTTPS://A.B.CO/"]
)
def test_public_addresses_are_not(url: str) -> None:
    assert not is_private(url)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://10.0.0.1/a.png", "detail": "low"}},
        {"type": "image_url", "image_url": "http://10.0.0.1/a.png"},
        {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}},
        {"type": "input_file", "file_url": "http://localhost/a.pdf"},
    ],
)
def test_every_kind_of_part_that_holds_a_url_is_looked_at(part: dict[str, Any]) -> None:
    """In chat completions and in responses; a data: URL is no address."""
    fine = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    for key in ("messages", "input"):
        problem = find_private_url({key: [{"role": "user", "content": [fine, part]}]})
        assert problem is not None
        assert problem.code == "private_url" and "10.0.0.1" not in problem.message
        assert problem.param is not None and problem.param.startswith(f"body.{key}[0].content[1].")
    assert find_private_url({"messages": [{"role": "user", "content": [fine]}]}) is None


@pytest.mark.parametrize(
    ("model", "settings", "status"),
    [
        ("own", {}, "failed"),
        ("hosted", {}, "in_progress"),
        ("own", {"block_private_urls": False}, "in_progress"),
    ],
)
def test_ingest_refuses_them_for_own_engines_alone(
    sqlite_url: str, tmp_path: Path, model: str, settings: dict[str, Any], status: str
) -> None:
    """A hosted provider fetches from its own network; the setting can be switched off."""
    world = make_world(sqlite_url, tmp_path, providers=PROVIDERS, **settings)
    content = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}]
    lines = [request_line("plain", model=model), request_line("image", model=model, content=content)]
    batch = ingest(world, jsonl(lines))
    assert batch.status == status
    if status == "failed":
        with world.db.read() as conn:
            errors = batches.errors_of(conn, [batch.id])[batch.id]
        assert [(error.code, error.line) for error in errors] == [("private_url", 2)]
    world.close()
