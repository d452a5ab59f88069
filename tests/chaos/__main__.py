"""`python -m tests.chaos`: kill things for minutes, and count what was lost. `make chaos` runs it.

Every choice comes from one seed, printed first: `--seed N` makes the same plan of faults again.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time

from batch.operations.bells import SilentBells
from batch.operations.doctor import examine
from batch.operations.world import open_world
from batch.settings import Settings
from tests.chaos.cluster import LEASE_S, Cluster
from tests.chaos.story import Users
from tests.chaos.verdict import TERMINAL, Verdict, judge
from tests.harness.waiting import eventually

UPSTREAM_FAULTS = [
    "--as", "vllm", "--latency", "exponential:0.15",
    "--fault", "rate_limit:0.01,retry_after_s=1", "--fault", "status:0.01,status=500",
    "--fault", "reset:0.01", "--fault", "truncated_json:0.005", "--fault", "hang:0.002,seconds=30",
]  # fmt: skip


class Chaos:
    """One run: faults every `every_s` seconds while users work, then peace, then the verdict."""

    def __init__(self, seed: int, database: str, workers: int, lines: tuple[int, int] = (20, 400)) -> None:
        self.chance = random.Random(seed)
        self.cluster = Cluster(database, workers, UPSTREAM_FAULTS)
        self.fault_times: list[float] = []
        self.injected: dict[str, int] = {}
        self._lines = lines

    def run(self, seconds: float, every_s: float, max_faults: int = 10**9) -> Verdict:
        self.cluster.start()
        try:
            users = Users(self.cluster.base_url, self.chance, self._lines)
            users.submit()
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and sum(self.injected.values()) < max_faults:
                self._live(users)
                self._hurt()
                time.sleep(self.chance.uniform(0.3, 1.7) * every_s)
                self.cluster.tend()
            self._settle(users)
            verdict = judge(users, self.cluster.witness_log, self.fault_times, sum(self.injected.values()))
            verdict.wrong["invariants broken"] += self._doctor()
        finally:
            leaked = self.cluster.stop()
        verdict.wrong["processes leaked"] += leaked
        if verdict.is_clean:
            self.cluster.remove()
        else:
            print(f"logs and data kept in {self.cluster.directory}", file=sys.stderr)
        return verdict

    def _live(self, users: Users) -> None:
        act = self.chance.choices(
            [users.submit, lambda: users.submit("3s"), users.cancel_one, users.pause_and_resume_one, users.retry_one],
            [10, 1, 2, 2, 2],
        )[0]
        act()

    def _hurt(self) -> None:
        cluster, chance = self.cluster, self.chance
        worker = chance.choice(cluster.worker_names())
        faults = {
            "kill worker": (6, lambda: cluster.kill(worker)),
            "terminate worker": (3, lambda: cluster.terminate(worker)),
            "freeze worker": (3, lambda: cluster.freeze(worker, chance.uniform(1, 2.5 * LEASE_S))),
            "kill jobs": (3, lambda: cluster.kill("jobs")),
            "kill api": (2, lambda: cluster.kill("api")),
            "kill beat": (1, lambda: cluster.kill("beat")),
            "restart valkey": (2, cluster.restart_valkey),
            "flush valkey": (2, cluster.flush_valkey),
            "cut": (3, lambda: self._cut(chance.choice(sorted(cluster.links)))),
            "delay": (2, lambda: cluster.links[chance.choice(sorted(cluster.links))].delay(chance.uniform(0.01, 0.3))),
            "heal": (4, lambda: [link.heal() for link in cluster.links.values()]),
        }
        if cluster.database == "postgresql":
            mode = chance.choice(["immediate", "fast"])
            faults["restart postgres"] = (2, lambda: cluster.restart_postgres(mode))
        name = chance.choices(list(faults), [weight for weight, _ in faults.values()])[0]
        self.fault_times.append(time.time())
        faults[name][1]()
        if name != "heal":
            self.injected[name] = self.injected.get(name, 0) + 1

    def _cut(self, name: str) -> None:
        link = self.cluster.links[name]
        link.cut()
        time.sleep(self.chance.uniform(0.2, 2.0))
        link.heal()
        self.fault_times.append(time.time())

    def _settle(self, users: Users) -> None:
        """Peace: everything must now end by itself, every batch within minutes."""
        self.fault_times.append(time.time())
        self.cluster.heal()
        self.cluster.wait_ready()
        users.resume_all()

        def all_ended() -> bool:
            self.cluster.tend()
            return all(users.client.batches.retrieve(told.batch_id).status in TERMINAL for told in users.batches)

        try:
            eventually(all_ended, timeout_s=240, every_s=1.0)
        except AssertionError:
            return  # the verdict names the batches that are stuck

    def _doctor(self) -> list[str]:
        """What `batchmill admin doctor` finds wrong; its warnings mend themselves."""
        settings = Settings(database_url=self.cluster.direct_database_url, data_dir=self.cluster.directory / "data")
        world = open_world(settings, bells=SilentBells())
        try:
            return [f"{found.check}: {found.detail}" for found in examine(world) if found.verdict == "wrong"]
        finally:
            world.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--every", type=float, default=2.0, help="mean seconds between faults")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else int.from_bytes(os.urandom(4), "big")
    worst = 0
    for database in ["sqlite", "postgresql"] if given.database == "both" else [given.database]:
        print(f"chaos on {database}: seed {seed}, {given.seconds:g} s, a fault every {given.every:g} s", flush=True)
        chaos = Chaos(seed, database, given.workers)
        verdict = chaos.run(given.seconds, given.every)
        print(verdict.table())
        print("faults: " + ", ".join(f"{name} {count}" for name, count in sorted(chaos.injected.items())), flush=True)
        if not verdict.is_clean:
            print(f"again: make chaos ARGS='--seed {seed} --database {database}'")
            worst = 1
    return worst


if __name__ == "__main__":
    sys.exit(main())
