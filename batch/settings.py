"""Settings: batchmill.toml and BATCHMILL_* variables, read once at start.

Owns: every setting's name, default and meaning, and the numbers decided once. The only module that
reads the environment. Unknown keys are errors that name the nearest key.
May not touch: presets (providers/presets.py merges them under [providers.NAME]).
"""

from __future__ import annotations

import difflib
import hashlib
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_origin

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

# Numbers decided once (seconds, counts, bytes). Not settings: changing one changes the protocol.
MAX_ATTEMPTS = 5
SCHEMA_RETRIES = 2
GIVE_BACK_ABOVE_S = 60.0
LEASE_S = 60.0
RENEW_EVERY_S = 20.0
PROBE_EVERY_S = 60.0  # a refused key or model is tried by one line this often
SHARE_EXPIRES_S = 20.0  # a worker that is not heard of for so long holds no concurrency
LINGER_S = 0.05
GROUP_ROWS = 500
DRAIN_S = 30.0
CANCEL_GRACE_S = 60.0
SLICE_MAX_LINES = 500
SLICE_SECONDS = 20.0
BODY_IN_ROW_BYTES = 64 * 1024
RECORDER_ROWS = 2_000
RECORDER_BYTES = 64 * 1024 * 1024


class ConfigError(ValueError):
    """A wrong configuration; the message names the place and the mend."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)


class TlsConfig(Strict):
    """PEM paths: `ca` to trust besides the system's, `cert` and `key` for mutual TLS."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


class Price(Strict):
    """US dollars per million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached: float | None = Field(default=None, ge=0)


class LaunchConfig(Strict):
    """A managed engine: `command` is an argument list; `{port}` is replaced by a free port."""

    command: list[str] = Field(min_length=1)
    replicas: int = Field(default=1, ge=1, le=64)
    ready_s: float = Field(default=600.0, gt=0)
    env: dict[str, str] = {}


class ProviderConfig(Strict):
    """[providers.NAME]; every field overrides the preset's. Limits are per provider key and model."""

    preset: str | None = None
    base_url: str | None = None
    base_urls: list[str] = []
    api_key_env: str | None = None
    api_key_file: Path | None = None
    engine: Literal["vllm", "sglang", "llamacpp", "ollama", "transformers", "tgi", "openai"] | None = None
    plan: str | None = None
    requests_per_second: float | None = Field(default=None, gt=0)
    requests_per_minute: float | None = Field(default=None, gt=0)
    requests_per_hour: float | None = Field(default=None, gt=0)
    requests_per_day: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_day: float | None = Field(default=None, gt=0)
    concurrency: int | None = Field(default=None, ge=1, le=100_000)
    models: list[str] = []
    price: dict[str, Price] = {}  # by model, "*" for the rest
    defaults: dict[str, Any] = {}  # body keys merged where absent
    tls: TlsConfig = TlsConfig()
    launch: LaunchConfig | None = None
    stream: bool | None = None  # ask upstream for SSE and fold it to one answer
    timeout_s: float = Field(default=600.0, gt=0)  # one call, first byte to last
    capabilities: dict[str, Any] = {}  # overrides of the preset's capability rows
    queue: str | None = None  # the Celery queue whose workers serve this provider; default "calls"

    @model_validator(mode="after")
    def one_of_each(self) -> Self:
        if self.base_url and self.base_urls:
            raise ValueError("give base_url or base_urls, not both")
        if self.api_key_env and self.api_key_file:
            raise ValueError("give api_key_env or api_key_file, not both")
        return self


class RouteConfig(Strict):
    """[[routes]]: `match` is a glob over the requested model; `providers` are NAME or NAME/model."""

    match: str
    providers: list[str] = Field(min_length=1)
    fallback: str = "on_failure"

    @field_validator("fallback")
    @classmethod
    def known_fallback(cls, value: str) -> str:
        if value in {"on_failure", "never"} or (value.startswith("on_wait:") and parse_duration(value[8:])):
            return value
        raise ValueError('fallback is "on_failure", "never" or "on_wait:30m"')


class Settings(Strict):
    """All settings. Variables: BATCHMILL_ + the name in capitals (BATCHMILL_DATABASE_URL, ...)."""

    # where data lives
    data_dir: Path = Path(".batchmill")
    database_url: str | None = None  # default sqlite:///DATA_DIR/batchmill.db
    redis_url: str | None = None  # default: an embedded Valkey on DATA_DIR/valkey.sock
    files_url: str | None = None  # default file://DATA_DIR/files; s3://bucket/prefix, gs://, az://
    # the API
    host: str = "127.0.0.1"
    port: int = Field(default=8484, ge=0, le=65535)
    metrics_port: int | None = Field(default=None, ge=1, le=65535)  # workers: the first free port from here
    # the client side of submit, status, results, cancel, retry
    server: str = "http://127.0.0.1:8484"
    api_key: SecretStr | None = None
    # limits of what is accepted
    max_requests_per_batch: int = Field(default=5_000_000, ge=1)
    max_file_bytes: int = Field(default=8 * 1024**3, ge=1)
    max_line_bytes: int = Field(default=64 * 1024**2, ge=1024)
    max_json_body_bytes: int = Field(default=1024**2, ge=1024)
    completion_windows: list[str] = []  # empty: any duration ("24h", "90m", "7d")
    strict_single_model: bool = False
    output_ascii: bool = False
    block_private_urls: bool = True  # refuse image_url hosts in private networks towards own engines
    # workers
    workers: int = Field(default=1, ge=1, le=256)
    transport: Literal["direct", "httpx"] = "direct"
    response_max_bytes: int = Field(default=64 * 1024**2, ge=1024)
    drain_s: float = Field(default=DRAIN_S, gt=0)
    cancel_grace_s: float = Field(default=CANCEL_GRACE_S, ge=0)
    max_in_flight: int = Field(default=2_000, ge=1)  # per worker process
    # retention, in seconds; 0 keeps for ever
    input_expires_after_s: int = Field(default=30 * 86_400, ge=0)
    output_expires_after_s: int = Field(default=30 * 86_400, ge=0)
    purge_after_s: int = Field(default=86_400, ge=0)  # request bodies and result rows, after the files exist
    # webhooks
    webhook_urls: list[str] = []
    webhook_secret: SecretStr | None = None
    webhook_allow_private: bool = False
    # logs
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # tables of batchmill.toml
    providers: dict[str, ProviderConfig] = {}
    routes: list[RouteConfig] = []

    @property
    def resolved_data_dir(self) -> Path:
        return self.data_dir.expanduser().absolute()

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.resolved_data_dir / 'batchmill.db'}"

    @property
    def resolved_files_url(self) -> str:
        return self.files_url or f"file://{self.resolved_data_dir / 'files'}"

    @property
    def valkey_socket(self) -> Path:
        """In the data directory; a path too long for a socket's name moves to a short one that it determines."""
        path = self.resolved_data_dir / "valkey.sock"
        if len(os.fsencode(path)) <= 100:  # sun_path holds 104 to 108 bytes
            return path
        name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return Path("/tmp") / f"batchmill-{os.getuid()}-{name}" / "valkey.sock"  # noqa: S108 - made 0700, checked

    @property
    def resolved_redis_url(self) -> str:
        """For redis-py (`unix://`) — Celery's own spelling is made in workers.app."""
        return self.redis_url or f"unix://{self.valkey_socket}"


def load_settings(
    config: Path | None = None, *, environ: Mapping[str, str] | None = None, **overrides: Any
) -> Settings:
    """Read BATCHMILL_CONFIG or ./batchmill.toml, then the environment, then `overrides` (not None).

    Raises ConfigError, one message for all faults, each with its place and, for unknown keys, the nearest.
    """
    env = os.environ if environ is None else environ
    named = config or (Path(env["BATCHMILL_CONFIG"]) if env.get("BATCHMILL_CONFIG") else None)
    path = named or Path("batchmill.toml")
    if named is not None and not path.exists():
        raise ConfigError(f"{path}: no such file (named by {'--config' if config else 'BATCHMILL_CONFIG'})")
    given = {key: value for key, value in overrides.items() if value is not None}
    from_file = _read_toml(path) if path.exists() else {}
    try:
        return Settings(**_merged(_merged(from_file, _read_variables(env)), given))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, path, env, given))) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _read_variables(env: Mapping[str, str]) -> dict[str, Any]:
    """Lists and tables are JSON there."""
    if problems := _unknown_variables(env):
        raise ConfigError("\n".join(problems))
    values: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        text = env.get(_variable(name))
        if text is not None and get_origin(field.annotation) in (list, dict):
            try:
                values[name] = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                raise ConfigError(f"{_variable(name)}: lists and tables are JSON there: {error}") from None
        elif text is not None:
            values[name] = text
    return values


def _merged(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Tables are merged key by key, anything else is replaced."""
    both = {
        key: _merged(lower[key], value)
        for key, value in upper.items()
        if isinstance(value, dict) and isinstance(lower.get(key), dict)
    }
    return {**lower, **upper, **both}


def environment_value(name: str) -> str | None:
    """One variable of the environment, for keys named by api_key_env and presets. None when unset or empty."""
    return os.environ.get(name) or None


def process_environment() -> dict[str, str]:
    """A copy of the environment, for child processes."""
    return dict(os.environ)


def parse_duration(text: str) -> float | None:
    """Seconds in "90m", "24h", "7d", "30s"; None when it is no duration."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isdecimal() or not number.isascii() or len(number) > 10 or int(number) == 0:
        return None
    return float(int(number) * units[unit])


def _variable(name: str) -> str:
    return f"BATCHMILL_{name.upper()}"


def _unknown_variables(env: Mapping[str, str]) -> list[str]:
    known = {_variable(name) for name in (*Settings.model_fields, "config")}
    return [
        f"{name}: no such setting{nearest(name, known)}"
        for name in sorted(env)
        if name.startswith("BATCHMILL_") and name not in known
    ]


def _explain(error: ValidationError, path: Path, env: Mapping[str, str], given: Mapping[str, Any]) -> Iterator[str]:
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        location = [str(part) for part in item["loc"]]
        name, message = location[0], item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"no such key{nearest(location[-1], _known_keys(location))}"
        source = str(path)
        if name in given:
            source = f"--{name.replace('_', '-')}"
        elif _variable(name) in env:
            source = _variable(name)
        place = [".".join(location)] if source == str(path) or len(location) > 1 else []
        yield ": ".join([source, *place, message])


def _known_keys(location: list[str]) -> set[str]:
    model: type[BaseModel] = Settings
    if location[0] == "providers":
        tables: dict[str, type[BaseModel]] = {"tls": TlsConfig, "launch": LaunchConfig, "price": Price}
        model = tables.get(location[2] if len(location) > 3 else "", ProviderConfig)
    elif location[0] == "routes":
        model = RouteConfig
    return set(model.model_fields)


def nearest(name: str, known: Iterable[str]) -> str:
    """The mend, or nothing."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""
