"""`python -m tests.chaos`: kill things for minutes, and count what was lost. `make chaos` runs it.

Every choice comes from one seed, printed first: `--seed N` makes the same plan of faults again.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time

from batch.operations.bells import Bells
from batch.operations.doctor import examine
from batch.operations.world import open_world
from batch.settings import Settings
from tests.chaos.cluster import LEASE_S, Cluster
from tests.chaos.story import ENDED, Users
from tests.chaos.verdict import Verdict, judge
from tests.harness.waiting import eventually

UPSTREAM_FAULTS = [
    "--as", "vllm", "--latency", "exponential:0.15",
    "--fault", "rate_limit:0.002,retry_after_s=1", "--fault", "status:0.01,status=500",
    "--fault", "reset:0.005", "--fault", "truncated_json:0.005", "--fault", "hang:0.001,seconds=30",
]  # fmt: skip


class Chaos:
    """One run: faults every `every_s` seconds while users work, then peace, then the verdict."""

    def __init__(self, seed: int, database: str, workers: int, lines: tuple[int, int] = (20, 400)) -> None:
        self.chance = random.Random(seed)
        self.cluster = Cluster(database, workers, UPSTREAM_FAULTS)
        self.injected: dict[str, int] = {}
        self._lines = lines

    @property
    def faults(self) -> int:
        return sum(self.injected.values())

    def run(self, seconds: float, every_s: float, max_faults: int = 10**9) -> Verdict:
        self.cluster.start()
        try:
            users = Users(self.cluster.base_url, self.chance, self._lines)
            for _ in range(3):
                users.submit()
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and self.faults < max_faults:
                self._live(users)
                self._hurt()
                time.sleep(self.chance.uniform(0.3, 1.7) * every_s)
            self._settle(users)
            verdict = judge(users, self.cluster.witness_log, self.cluster.history)
            verdict.seen["faults injected"] = self.faults
            verdict.wrong["invariants broken"] += self._doctor()
        finally:
            leaked = self.cluster.stop()
        verdict.wrong["processes leaked"] += leaked
        if verdict.is_clean:
            self.cluster.remove()
        else:
            (self.cluster.directory / "history.txt").write_text("\n".join(map(str, self.cluster.history.events)))
            print(f"logs, data and history kept in {self.cluster.directory}", file=sys.stderr)
        return verdict

    def _live(self, users: Users) -> None:
        window = f"{self.chance.randint(2, 10)}s"
        acts = {
            users.submit: 8,
            lambda: users.submit(window): 2,
            lambda: users.submit(budget=True): 2,
            users.submit_and_cancel: 1,
            users.stop_midway: 2,
            users.create_again: 1,
            users.cancel_one: 2,
            users.pause_one: 2,
            users.resume_one: 2,
            users.raise_one: 2,
            users.retry_one: 3,
        }
        self.chance.choices(list(acts), list(acts.values()))[0]()

    def _hurt(self) -> None:
        cluster, chance = self.cluster, self.chance
        worker, link = chance.choice(cluster.worker_names()), chance.choice(sorted(cluster.links))
        cut_s = chance.choice([chance.uniform(0.2, 2.0), chance.uniform(0.5, 1.5 * LEASE_S)])
        faults = {
            "kill worker": (6, lambda: cluster.kill(worker)),
            "terminate worker": (3, lambda: cluster.terminate(worker)),
            "freeze worker": (4, lambda: cluster.freeze(worker, chance.uniform(1, 2.5 * LEASE_S))),
            "kill jobs": (3, lambda: cluster.kill("jobs")),
            "freeze jobs": (1, lambda: cluster.freeze("jobs", chance.uniform(1, 2.5 * LEASE_S))),
            "terminate jobs": (1, lambda: cluster.terminate("jobs")),
            "kill api": (2, lambda: cluster.kill("api")),
            "kill beat": (1, lambda: cluster.kill("beat")),
            "kill the host": (2, cluster.kill_host),
            "restart valkey": (2, cluster.restart_valkey),
            "flush valkey": (2, cluster.flush_valkey),
            "restart upstream": (1, cluster.restart_upstream),
            f"cut {link}": (4, lambda: cluster.cut(link, cut_s)),
            f"delay {link}": (3, lambda: cluster.delay(link, chance.uniform(0.01, 0.3), chance.uniform(1, 6))),
        }
        if cluster.database == "postgresql":
            mode = chance.choice(["immediate", "fast"])
            faults[f"restart postgres ({mode})"] = (3, lambda: cluster.restart_postgres(mode))
        name = chance.choices(list(faults), [weight for weight, _ in faults.values()])[0]
        faults[name][1]()
        self.injected[name] = self.injected.get(name, 0) + 1

    def _settle(self, users: Users) -> None:
        """Peace: everything must now end by itself, every batch within minutes."""
        self.cluster.heal()
        self.cluster.calm_upstream()
        self.cluster.wait_ready()
        users.settle()

        def all_ended() -> bool:
            left = [b for b in users.batches if users.client.batches.retrieve(b.batch_id).status not in ENDED]
            for told in left:
                users.settle_one(told)
            return not left

        try:
            eventually(all_ended, timeout_s=240, every_s=1.0)
        except AssertionError:
            return  # the verdict names the batches that are stuck

    def _doctor(self) -> list[str]:
        """What `batchmill admin doctor` finds wrong; its warnings mend themselves."""
        settings = Settings(database_url=self.cluster.direct_database_url, data_dir=self.cluster.directory / "data")
        world = open_world(settings, bells=Bells())
        try:
            return [f"{found.check}: {found.detail}" for found in examine(world) if found.verdict == "wrong"]
        finally:
            world.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--every", type=float, default=2.0, help="mean seconds between faults")
    parser.add_argument("--faults", type=int, default=10**9, help="stop after this many")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else int.from_bytes(os.urandom(4), "big")
    worst = 0
    for database in ["sqlite", "postgresql"] if given.database == "both" else [given.database]:
        print(f"chaos on {database}: seed {seed}, {given.seconds:g} s, a fault every {given.every:g} s", flush=True)
        chaos = Chaos(seed, database, given.workers)
        verdict = chaos.run(given.seconds, given.every, given.faults)
        print(verdict.table())
        print("faults: " + ", ".join(f"{name} {count}" for name, count in sorted(chaos.injected.items())), flush=True)
        if not verdict.is_clean:
            print(f"again: make chaos ARGS='--seed {seed} --database {database}'")
            worst = 1
    return worst


if __name__ == "__main__":
    sys.exit(main())
