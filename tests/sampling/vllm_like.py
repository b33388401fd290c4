"""A server that speaks vLLM's protocol: real HTTP, a real model with transformers and PEFT, adapters read from folders.

What it answers follows vLLM 0.32 (looked up on a real one): paths, fields, statuses and the texts of its errors. Faults
are switched on by attributes. As a program: `python -m tests.sampling.vllm_like MODEL --port PORT`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


class VLLMLike(ThreadingHTTPServer):
    """Serves a model's folder at `url` until `close`."""

    daemon_threads = True

    def __init__(self, folder: str | Path, *, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.base_name = str(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.peft: PeftModel | None = None
        self.adapters: list[str] = []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[tuple[str, Any]] = []
        """Every request's path and body."""
        self.loaded: list[str] = []
        """Every name that was loaded, in order."""
        # Faults.
        self.never_lists = False
        """Loading answers 200 and does nothing."""
        self.answers_with: str | None = None
        """The adapter that answers whatever is asked: a name, `base`, or `previous` for the one before the last."""
        self.reads_half = False
        """An adapter is read from a folder of which the second half of the tensors is zero."""
        self.drops = 0
        """So many further answers are cut off."""
        self.fails = 0
        """So many further requests are answered with 500."""
        self.seconds = 0.0
        """How long an answer takes."""
        self.raw_logprobs = False
        """As without `--logprobs-mode processed_logprobs`: log-probs ignore the temperature."""
        self.only = ""
        """Faults of the connection concern paths that end so."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is no error."""

    # ------------------------------------------------------------------------------------------------- adapters

    def load(self, name: str, path: str) -> tuple[int, Any]:
        if name in self.adapters:
            return 400, _error(f"The lora adapter '{name}' has already been loaded.")
        if not (Path(path) / "adapter_config.json").is_file():
            return 404, _error(f"Loading lora {name} failed: No adapter found for {path}")
        if self.never_lists:
            return 200, f"Success: LoRA adapter '{name}' added successfully."
        with tempfile.TemporaryDirectory() as copy:
            folder = Path(path)
            if self.reads_half:
                folder = Path(copy) / "half"
                shutil.copytree(path, folder)
                weights = load_file(folder / "adapter_model.safetensors")
                late = sorted(weights)[len(weights) // 2 :]
                weights |= {key: torch.zeros_like(weights[key]) for key in late}
                save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            try:
                if self.peft is None:
                    self.peft = PeftModel.from_pretrained(self.model, str(folder), adapter_name=name)
                else:
                    if name in self.peft.peft_config:  # unloaded adapters are kept, for the fault `answers_with`
                        self.peft.delete_adapter(name)
                    self.peft.load_adapter(str(folder), adapter_name=name)
            except Exception as error:
                return 500, _error(f"Loading lora {name} failed: {type(error).__name__}")
        self.peft.eval()
        self.adapters.append(name)
        self.loaded.append(name)
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, name: str) -> tuple[int, Any]:
        if name not in self.adapters:
            return 404, _error(f"The lora adapter '{name}' cannot be found.")
        self.adapters.remove(name)
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    def used(self, name: str) -> str | None:
        """The adapter that answers to a name; None: the base."""
        if self.answers_with == "previous" and name != self.base_name:
            return self.loaded[-2] if len(self.loaded) > 1 else None
        found = self.answers_with if self.answers_with and name != self.base_name else name
        return None if found in (self.base_name, "base") else found

    @torch.no_grad()
    def logits(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        adapter = self.used(name)
        if self.peft is None:
            return self.model(ids).logits.float()
        if adapter is not None:
            self.peft.set_adapter(adapter)
        with nullcontext() if adapter is not None else self.peft.disable_adapter():
            return self.peft(ids).logits.float()

    # ---------------------------------------------------------------------------------------------- completions

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = body["model"]
        if name != self.base_name and name not in self.adapters:
            return 404, _error(f"The model `{name}` does not exist. Valid aliases: <path>")
        prompt, count = list(body["prompt"]), int(body.get("n") or 1)
        choices = [self.choice(name, prompt, body, k) for k in range(count)]
        return 200, {"id": "cmpl-0", "object": "text_completion", "model": name, "choices": choices}

    def choice(self, name: str, prompt: list[int], body: dict[str, Any], k: int) -> dict[str, Any]:
        temperature, stops = float(body.get("temperature", 1.0)), set(body.get("stop_token_ids") or ())
        generator = torch.Generator().manual_seed((int(body.get("seed") or 0) + k) % 2**63)
        ids: list[int] = []
        logprobs: list[float] = []
        tops: list[dict[str, float]] = []
        while len(ids) < int(body.get("max_tokens", 16)) and not (ids and ids[-1] in stops):
            logits = self.logits(name, torch.tensor([[*prompt, *ids]]))[0, -1].double()
            scaled = (logits / (temperature or 1.0)).log_softmax(-1)
            token = (
                int(scaled.argmax())
                if not temperature
                else int(torch.multinomial(scaled.exp(), 1, generator=generator))
            )
            ids.append(token)
            best = scaled.topk(min(int(body.get("logprobs") or 0), len(scaled)))
            tops.append({f"token_id:{i}": p for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)})
            logprobs.append(float((logits.log_softmax(-1) if self.raw_logprobs else scaled)[token]))
        choice: dict[str, Any] = {
            "index": k,
            "finish_reason": "stop" if ids[-1] in stops else "length",
            "logprobs": None,
            "prompt_logprobs": None,
        }
        if body.get("logprobs") is not None:
            choice["logprobs"] = {"token_logprobs": logprobs, "top_logprobs": tops}
        if body.get("return_token_ids"):
            choice |= {"token_ids": ids, "prompt_token_ids": prompt}
        return choice

    def models(self) -> dict[str, Any]:
        base = {"id": self.base_name, "object": "model", "root": self.base_name, "parent": None}
        adapters = [{"id": name, "object": "model", "parent": self.base_name} for name in self.adapters]
        return {"object": "list", "data": [base, *adapters]}


class _Handler(BaseHTTPRequestHandler):
    server: VLLMLike
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with self.server.lock:
            found = {"/health": "", "/v1/models": self.server.models()}.get(self.path)
        self.answer(*((200, found) if found is not None else (404, {"detail": "Not Found"})))

    def do_POST(self) -> None:
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.requests.append((self.path, body))
        faulty = self.path.endswith(server.only)
        if faulty and server.seconds:
            time.sleep(server.seconds)
        with server.lock:
            if faulty and server.drops:
                server.drops -= 1
                self.close_connection = True
                self.connection.shutdown(2)
                return
            if faulty and server.fails:
                server.fails -= 1
                status, found = 500, _error("EngineCore encountered an issue.")
            elif self.path == "/v1/load_lora_adapter":
                status, found = server.load(body["lora_name"], body["lora_path"])
            elif self.path == "/v1/unload_lora_adapter":
                status, found = server.unload(body["lora_name"])
            elif self.path == "/v1/completions":
                status, found = server.complete(body)
            else:
                status, found = 404, {"detail": "Not Found"}
        self.answer(status, found)

    def answer(self, status: int, found: Any) -> None:
        data = found.encode() if isinstance(found, str) else json.dumps(found).encode()
        self.send_response(status)
        if not isinstance(found, str):
            self.send_header("Content-Type", "application/json")
        elif found:
            self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    VLLMLike(options.model, port=options.port)
    threading.Event().wait()
