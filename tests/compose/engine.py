"""A container engine with a compose command: Docker, or podman with podman-compose.

Owns: how each is called, and the settings that podman needs where there is no systemd. Images that cannot be
pulled are told to the caller, never pulled twice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

_CONTAINERS_CONF = """[containers]
default_ulimits = ["nofile=20000:20000", "nproc=8192:8192"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "netavark"
"""


class Engine:
    """`name` is docker or podman; `compose` runs in `directory` with the given files."""

    def __init__(self, directory: Path, files: list[Path], variables: dict[str, str]) -> None:
        self.directory = directory
        self.environment = {**os.environ, **variables}
        self.name = _find_engine()
        self._files = [word for file in files for word in ("-f", str(file))]
        if self.name == "podman" and not Path("/run/systemd/system").exists():
            conf = directory / "containers.conf"
            conf.write_text(_CONTAINERS_CONF)
            self.environment["CONTAINERS_CONF"] = str(conf)

    @property
    def is_podman(self) -> bool:
        return self.name == "podman"

    def run(self, *arguments: str, timeout_s: float = 600, check: bool = True) -> str:
        """stdout of `docker …` or `podman …`."""
        return self._call([self.name, *arguments], timeout_s, check)

    def logs(self, container: str) -> str:
        """Its last lines, from both of its streams."""
        done = subprocess.run(
            [self.name, "logs", "--tail", "15", container], env=self.environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.stdout

    def compose(self, *arguments: str, timeout_s: float = 600, check: bool = True) -> str:
        """stdout of the compose command."""
        tool = [sys.executable, "-m", "podman_compose"] if self.is_podman else ["docker", "compose"]
        return self._call([*tool, "-p", "batchmill-test", *self._files, *arguments], timeout_s, check)

    def has_image(self, name: str) -> bool:
        return self.run("images", "-q", name).strip() != ""

    def pull(self, name: str) -> bool:
        """True when the image is there; a registry that is away answers within a minute."""
        full = name if self.name == "docker" else f"docker.io/{name if '/' in name else f'library/{name}'}"
        command = [self.name, "pull", "-q", full]
        try:
            done = subprocess.run(command, env=self.environment, capture_output=True, timeout=300, check=False)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def containers(self, service: str) -> list[str]:
        """Ids of the running containers of one service."""
        label = "io.podman.compose.service" if self.is_podman else "com.docker.compose.service"
        return self.run("ps", "-q", "--filter", f"label={label}={service}").split()

    def _call(self, command: list[str], timeout_s: float, check: bool) -> str:
        done = subprocess.run(
            command, cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip
        if check and done.returncode:
            print(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}", file=sys.stderr)
            raise subprocess.CalledProcessError(done.returncode, command)
        return done.stdout


def _find_engine() -> str:
    if shutil.which("docker") and _works(["docker", "compose", "version"]) and _works(["docker", "info"]):
        return "docker"
    if shutil.which("podman"):
        return "podman"
    raise SystemExit("make compose-test needs Docker with compose, or podman (apt-get install podman runc netavark)")


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False
