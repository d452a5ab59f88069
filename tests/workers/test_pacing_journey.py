"""Pacing as users meet it: real worker processes against a simulated provider that enforces its limits."""

from __future__ import annotations

import pytest

from batch.operations.pause_provider import resume_provider
from batch.simulator.config import Fault, Latency, Limit
from batch.storage.lanes import get_lanes
from batch.storage.projects import ensure_project
from tests.harness.mill import MODEL, Mill, running_mill
from tests.harness.waiting import eventually
from tests.harness.worlds import load, request_line

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def lines(count: int, name: str = "c", **body) -> list[dict]:
    return [request_line(f"{name}{i}", model=MODEL, **body) for i in range(count)]


def lane_of(story: dict, provider: str = "sim") -> dict:
    return next(lane for lane in story["lanes"] if lane["provider"] == provider)


def statuses(mill: Mill, provider: str | None = None) -> list[int]:
    return [call.status for call in mill.calls(provider)]


def refused_at(mill: Mill) -> list[float]:
    return [call.time for call in mill.calls() if call.status == 401]


def test_a_small_batch_behind_a_huge_one_goes_at_once():
    """20,000 lines are in front of 10; the 10 end while the others have hardly begun."""
    with running_mill({"sim": {"requests_per_second": 40}}) as mill:
        mill.simulator.reconfigure(latency=Latency("constant", 0.2))
        huge = mill.submit(lines(20_000, "huge"))
        eventually(lambda: load(mill.world, huge).completed > 40, 40)
        small = mill.submit(lines(10, "small"))
        mill.wait_done(small, 20)
        sent = [call.parameters for call in mill.calls()]
        assert load(mill.world, huge).completed < 1_000, "the small batch waited for the huge one"
        assert len(sent) < 1_000


def test_classes_share_eight_to_one_and_nobody_starves():
    """While both have lines, the high class gets about eight calls for each of the low one."""
    with running_mill({"sim": {"concurrency": 9}}) as mill:
        mill.simulator.reconfigure(latency=Latency("constant", 0.1), limits=(Limit("concurrency", 9),))
        low = mill.submit(lines(1_500, "low", seed=1), options={"priority": "low"})
        eventually(lambda: load(mill.world, low).completed > 20, 30)
        high = mill.submit(lines(300, "high", seed=2), options={"priority": "high"})
        mill.wait_done(high, 40)
        order = [call.seed for call in mill.calls()]
        assert set(statuses(mill)) == {200}
    together = order[order.index(2) : len(order) - order[::-1].index(2)]
    assert 6 <= together.count(2) / together.count(1) <= 11


def test_projects_share_alike_whatever_they_queue():
    """Two batches of one project get together what the one batch of another gets."""
    with running_mill({"sim": {"concurrency": 8}}) as mill:
        mill.simulator.reconfigure(latency=Latency("constant", 0.1))
        greedy = [mill.submit(lines(600, f"g{n}", seed=1)) for n in range(2)]
        eventually(lambda: all(load(mill.world, batch).completed > 5 for batch in greedy), 30)
        with mill.world.db.write() as conn:
            other = ensure_project(conn, "other")
        modest = mill.submit(lines(200, "m", seed=2), project=other)
        mill.wait_done(modest, 40)
        order = [call.seed for call in mill.calls()]
    together = order[order.index(2) : len(order) - order[::-1].index(2)]
    assert 0.8 <= together.count(2) / together.count(1) <= 1.25


def test_a_key_that_becomes_invalid_pauses_the_provider_and_fails_nothing(tmp_path):
    """One round of calls in flight, then one probe of all workers; the mended key file is read, all lines complete."""
    key = tmp_path / "key"
    key.write_text("sk-first")
    with running_mill({"sim": {"concurrency": 8, "api_key_file": str(key)}}, workers=2, PROBE_EVERY_S=3.0) as mill:
        mill.simulator.reconfigure(latency=Latency("constant", 0.2), valid_keys=("sk-first",))
        batch = mill.submit(lines(200))
        eventually(lambda: load(mill.world, batch).completed > 30, 30)
        mill.simulator.reconfigure(valid_keys=("sk-second",))
        story = eventually(lambda: (s := mill.story(batch)) and lane_of(s)["paused"] and s, 10)
        paused = lane_of(story)["paused"]
        assert (paused["code"], story["counts"]["failed"]) == ("bad_key", 0)
        assert "401" in paused["reason"] and str(key) in paused["mend"]
        round_ends = refused_at(mill)[0] + 2.5
        probes = eventually(lambda: (p := [at for at in refused_at(mill) if at > round_ends]) and len(p) > 1 and p, 20)
        assert len(refused_at(mill)) - len(probes) <= 2 * 8
        assert probes[1] - probes[0] > 2.0, "the second probe is the next one, not another worker's first"
        key.write_text("sk-second")
        assert mill.wait_done(batch, 30).failed == 0


def test_a_budget_of_one_end_user_holds_only_that_users_lines(tmp_path):
    """402 for alice: hers wait, the others' complete; she goes on when her budget does."""
    key = tmp_path / "key"
    key.write_text("sk-any")
    table = {"preset": "modelux", "concurrency": 4, "requests_per_second": 40, "api_key_file": str(key)}
    with running_mill({"sim": table}) as mill:
        denied = Fault("budget", contains="alice", retry_after_s=6.0)
        mill.simulator.reconfigure(personality="modelux", faults=(denied,), latency=Latency("constant", 0.05))
        users = [{"mlx:end_user": "alice" if number % 4 == 0 else "bob"} for number in range(80)]
        requests = [request_line(f"c{number}", model=MODEL, **user) for number, user in enumerate(users)]
        batch = mill.submit(requests)
        eventually(lambda: load(mill.world, batch).completed == 60, 20)
        story = mill.story(batch)
        assert (story["counts"]["failed"], lane_of(story)["paused"]) == (0, None)
        assert statuses(mill).count(402) <= 8, "alice's lines were tried again and again"
        assert "20 waiting lines" in eventually(lambda: mill.story(batch)["idle"], 10)
        mill.simulator.reconfigure(faults=())
        assert mill.wait_done(batch, 40).failed == 0


def test_a_daily_limit_pauses_until_its_reset_and_says_when():
    """429 for the day: no further call, no failed line, and status names the moment."""
    with running_mill({"sim": {"concurrency": 4}}) as mill:
        mill.simulator.reconfigure(latency=Latency("constant", 0.1))
        batch = mill.submit(lines(200))
        eventually(lambda: load(mill.world, batch).completed > 10, 30)
        mill.simulator.reconfigure(faults=(Fault("daily", retry_after_s=3_600.0),))
        story = eventually(lambda: (s := mill.story(batch)) and lane_of(s)["paused"] and s, 10)
        paused = lane_of(story)["paused"]
        assert 3_000 < paused["until"] - story["now"] <= 3_700
        assert (paused["code"], story["counts"]["failed"], story["eta_s"]) == ("rate_daily", 0, None)
        refused = statuses(mill).count(429)
        assert refused <= 8
        live = next(row for row in mill.providers() if row["provider"] == "sim")["models"][0]
        assert live["paused"]["code"] == "rate_daily"


def test_a_pause_that_a_person_lifts_is_lifted_in_redis_too():
    """Until its reset a lane with a known limit would get no slot, whatever the database says."""
    with running_mill({"sim": {"requests_per_second": 40}}) as mill:
        mill.simulator.reconfigure(latency=Latency("constant", 0.05))
        batch = mill.submit(lines(200))
        eventually(lambda: load(mill.world, batch).completed > 10, 30)
        mill.simulator.reconfigure(faults=(Fault("daily", retry_after_s=3_600.0),))
        eventually(lambda: lane_of(mill.story(batch))["paused"], 10)
        mill.simulator.reconfigure(faults=())
        resume_provider(mill.world, "sim")
        assert mill.wait_done(batch, 30).failed == 0


def test_lines_flow_to_the_next_provider_while_the_first_is_down():
    """The circuit opens, lines go to the backup, and each output line says who answered."""
    route = {"match": MODEL, "providers": ["sim", "backup"]}
    providers = {"sim": {"concurrency": 8}, "backup": {"concurrency": 8, "models": ["other"]}}
    with running_mill(providers, routes=[route]) as mill:
        for simulator in mill.simulators.values():
            simulator.reconfigure(latency=Latency("constant", 0.1))
        batch = mill.submit(lines(300))
        eventually(lambda: load(mill.world, batch).completed > 40, 30)
        mill.simulator.reconfigure(faults=(Fault("unavailable", retry_after_s=0.2),))
        ended = mill.wait_done(batch, 60)
        served = [line["batchmill"]["provider"] for line in mill.output(batch)]
        hammered = statuses(mill, "sim").count(503)
    assert ended.failed == 0
    assert served.count("sim") >= 40 and served.count("backup") >= 200
    assert hammered <= 60


@pytest.mark.parametrize("form", ["seconds", "ms", "date", "body_text"])
def test_retry_after_is_obeyed_in_all_its_forms(form):
    """After a 429 that names a wait, nothing is sent inside it (calls already on their way aside)."""
    with running_mill({"sim": {"requests_per_second": 50}}) as mill:
        mill.simulator.reconfigure(latency=Latency("constant", 0.02))
        batch = mill.submit(lines(200))
        eventually(lambda: load(mill.world, batch).completed > 30, 30)
        refusals = (Fault("rate_limit", times=3, retry_after=form, retry_after_s=3.0),)
        mill.simulator.reconfigure(faults=refusals)
        assert mill.wait_done(batch, 40).failed == 0
        calls = mill.calls()
    refused_at = [call.time for call in calls if call.status == 429]
    assert 1 <= len(refused_at) <= 3
    inside = [call for call in calls if refused_at[0] + 0.3 < call.time < refused_at[0] + 1.9]
    assert inside == []


def test_without_redis_the_work_goes_on_at_a_safe_share_and_then_resumes():
    """Redis dies in the middle of a paced run: about half of the limit, no 429; all of it once Redis is back."""
    with running_mill({"sim": {"requests_per_second": 40}}, workers=2) as mill:
        limit = Limit("requests", 40, 1.0, "token_bucket", 2.0)
        mill.simulator.reconfigure(latency=Latency("constant", 0.05), limits=(limit,))
        batch = mill.submit(lines(700))
        eventually(lambda: load(mill.world, batch).completed > 60, 30)
        mill.valkey.stop()
        died = len(mill.calls())
        eventually(lambda: any(row["models"] and row["models"][0]["local_pace"] for row in mill.providers()), 20)
        eventually(lambda: len(mill.calls()) > died + 60, 20)
        mill.start_valkey()
        assert mill.wait_done(batch, 60).failed == 0
        seen = statuses(mill)
    assert seen.count(429) <= 4
    assert seen.count(200) == 700


def test_a_killed_worker_frees_its_concurrency_and_its_lines():
    """Of two workers that share eight calls in flight one dies; the other takes all eight and every line."""
    shorter = {"SHARE_EXPIRES_S": 4.0, "LEASE_S": 6.0, "RENEW_EVERY_S": 2.0}
    with running_mill({"sim": {"concurrency": 8}}, workers=2, **shorter) as mill:
        mill.simulator.reconfigure(latency=Latency("constant", 0.3), limits=(Limit("concurrency", 8),))
        batch = mill.submit(lines(400))
        eventually(lambda: load(mill.world, batch).completed > 60, 30)
        mill.workers[0].kill()
        eventually(lambda: _rate(mill) > 20, 25, what="the other worker takes all eight")
        assert mill.wait_done(batch, 60).failed == 0


def test_limits_learned_from_headers_survive_a_restart(tmp_path):
    """A header lowers what was known; a fresh worker on an empty Redis begins with it."""
    key = tmp_path / "key"
    key.write_text("sk-any")
    with running_mill({"sim": {"preset": "groq", "api_key_file": str(key)}}) as mill:
        mill.simulator.reconfigure(headers="groq", limits=(Limit("requests", 240, 60.0, "token_bucket", 60.0),))
        mill.wait_done(mill.submit(lines(5)))
        with mill.world.db.read() as conn:
            learned = get_lanes(conn)[0].learned["limits"]
        assert learned
        mill.workers[0].kill()
        mill.forget_redis()
        mill.start_worker("calls")
        mill.wait_done(mill.submit(lines(5, "again")))
        shown = mill.providers()[0]["models"][0]["limits"]
    assert {(limit["name"], limit["source"]) for limit in shown} >= {(name, "headers") for name in learned}


def _rate(mill: Mill) -> float:
    """Calls a second over the last two."""
    calls = mill.calls()
    now = mill.world.clock.now()
    return sum(now - call.time < 2.0 for call in calls) / 2.0
