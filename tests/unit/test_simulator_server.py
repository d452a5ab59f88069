"""The simulator as a server: connections, engine queues, its own process."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from batch.simulator import Fault, Simulator, start_simulator
from batch.simulator.__main__ import _parser, config_from, main
from batch.simulator.protocol import parse_head
from batch.simulator.queueing import Slots
from tests.harness.waiting import eventually

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'
ROOT = Path(__file__).resolve().parents[2]


def raw(simulator: Simulator, data: bytes, answers: int = 1) -> list[bytes]:
    """What comes back for these bytes on one connection, split by answers."""
    with socket.create_connection(("127.0.0.1", simulator.port), timeout=5) as connection:
        connection.sendall(data)
        received = b""
        while received.count(b"HTTP/1.1 ") < answers or not received.endswith(b"}"):
            part = connection.recv(65536)
            if not part:
                break
            received += part
    return [b"HTTP/1.1 " + part for part in received.split(b"HTTP/1.1 ")[1:]]


def request_bytes(body: bytes = BODY, extra: str = "") -> bytes:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def test_requests_may_come_in_pieces_and_in_pairs() -> None:
    with start_simulator() as simulator:
        assert len(raw(simulator, request_bytes() * 2, answers=2)) == 2
        connection = socket.create_connection(("127.0.0.1", simulator.port), timeout=5)
        for byte in request_bytes():
            connection.sendall(bytes([byte]))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
        connection.close()


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n"])
def test_what_is_not_http_is_refused_and_closed(data: bytes) -> None:
    with start_simulator() as simulator:
        assert raw(simulator, data)[0].startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("header", "status"), [("content-length: 99999999999", 413), ("transfer-encoding: chunked", 411)]
)
def test_bodies_over_the_limit_and_of_no_told_length_are_refused(header: str, status: int) -> None:
    with start_simulator() as simulator:
        answer = raw(simulator, f"POST / HTTP/1.1\r\n{header}\r\n\r\n".encode())[0]
    assert answer.startswith(b"HTTP/1.1 %d" % status)


def test_heads_are_parsed_once_into_lower_case() -> None:
    head = parse_head(b"GET /v1/models?x=1 HTTP/1.0\r\nX-A:  b")
    assert head is not None
    assert (head.path, head.headers, head.keeps_alive) == ("/v1/models", {"x-a": "b"}, False)


def test_an_engine_runs_its_slots_and_queues_the_rest() -> None:
    stuck = Fault("hang", on=(0, 1))
    with ThreadPoolExecutor(5) as pool, start_simulator(personality="vllm", slots=2, faults=(stuck,)) as simulator:
        sent = [pool.submit(answered, simulator) for _ in range(5)]
        eventually(lambda: gauges(simulator) == (2, 3))
        simulator.reconfigure(slots=5)
        eventually(lambda: gauges(simulator) == (2, 0))
        assert sum(simulator.witness.statuses.values()) == 5
        simulator.stop()
        assert sorted(answer.result() for answer in sent) == [0, 0, 200, 200, 200]


def test_a_full_queue_is_said_with_the_engines_own_status() -> None:
    settings: dict[str, Any] = {"slots": 1, "queue_max": 0, "faults": (Fault("hang", on=(0,)),)}
    for name, status in (("vllm", 503), ("tgi", 429)):
        with ThreadPoolExecutor(1) as pool, start_simulator(personality=name, **settings) as simulator:
            first = pool.submit(answered, simulator)
            eventually(lambda s=simulator: s.witness.in_flight == 1)
            assert answered(simulator) == status
            simulator.stop()
            assert first.result() == 0


def test_a_simulator_that_is_told_to_play_an_engine_queues_as_one() -> None:
    """Its slots count from then on."""
    with ThreadPoolExecutor(1) as pool, start_simulator() as simulator:
        simulator.reconfigure(personality="vllm", slots=1, faults=(Fault("hang", on=(0,)),))
        first = pool.submit(answered, simulator)
        eventually(lambda: gauges(simulator) == (1, 0))
        simulator.stop()
        assert first.result() == 0


def answered(simulator: Simulator) -> int:
    """The status, or 0 when the connection broke."""
    url = simulator.base_url + "/chat/completions"
    try:
        return httpx.post(url, content=BODY, timeout=30, trust_env=False).status_code
    except httpx.TransportError:
        return 0


def gauges(simulator: Simulator) -> tuple[int, int]:
    """Requests running and waiting, as /metrics shows them."""
    text = httpx.get(simulator.url + "/metrics", trust_env=False).text
    running, waiting = (re.search(rf"requests_{name}\{{.*\}} (\d+)\.0", text) for name in ("running", "waiting"))
    assert running is not None and waiting is not None
    return int(running[1]), int(waiting[1])


def test_a_caller_that_left_gives_its_slot_back() -> None:
    with start_simulator(personality="vllm", slots=1, faults=(Fault("hang", on=(0,)),)) as simulator:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(simulator.base_url + "/chat/completions", content=BODY, timeout=httpx.Timeout(10, read=0.1))
        answer = httpx.post(simulator.base_url + "/chat/completions", content=BODY, timeout=5, trust_env=False)
        assert answer.status_code == 200
        assert simulator.witness.totals()["aborted"] == 1


def test_slots_pass_over_waiters_that_left() -> None:
    slots = Slots(1, None)
    started: list[str] = []

    def starter(name: str, *, is_there: bool = True) -> Any:
        def start() -> bool:
            started.append(name)
            return is_there

        return start

    slots.enter(starter("a"))
    for name in ("b", "c"):
        slots.enter(starter(name, is_there=name != "b"))
    slots.leave()
    assert (started, slots.running, slots.waiting) == (["a", "b", "c"], 1, 0)


def test_it_runs_as_a_program_and_ends_on_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "batch.simulator", "--as", "groq", "--log", str(tmp_path / "log")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert re.fullmatch(r"simulating groq at http://127\.0\.0\.1:\d+/openai/v1\n", first)
        url = first.split()[-1]
        assert httpx.post(url + "/chat/completions", content=BODY, trust_env=False).status_code == 200
        process.terminate()
        assert process.wait(10) == 0
    assert (tmp_path / "log").read_text().count("\n") == 1


def test_flags_become_settings() -> None:
    flags = ["--as", "xai", "--rpm", "600", "--limiter", "second", "--tpm", "1000", "--charge", "actual",
             "--concurrency", "3",
             "--fault", "status:0.1,status=503,retry_after_s=2", "--fault", '{"kind": "hang", "on": [1]}',
             "--feature", "n=ignored", "--latency", "uniform:0.1,0.2"]  # fmt: skip
    config = config_from(_parser().parse_args(flags))
    assert [(limit.what, limit.amount, limit.kind, limit.over_s) for limit in config.limits] == [
        ("requests", 600, "fixed_window", 1.0), ("tokens", 1000, "fixed_window", 1.0),
        ("concurrency", 3, "token_bucket", None),
    ]  # fmt: skip
    assert config.faults == (Fault("status", rate=0.1, status=503, retry_after_s=2), Fault("hang", on=(1,)))
    assert (config.personality, config.features) == ("xai", (("n", "ignored"),))


@pytest.mark.parametrize("flags", [
    ["--fault", "earthquake"], ["--feature", "n=maybe"], ["--latency", "slow"], ["--latency", "normal:1"],
])  # fmt: skip
def test_wrong_flags_end_with_2_and_a_sentence(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 2
    assert capsys.readouterr().err.startswith("simulate: ")


def test_a_port_in_use_is_said_at_once() -> None:
    with start_simulator() as simulator, pytest.raises(OSError, match="address"):
        start_simulator(port=simulator.port)
