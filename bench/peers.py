"""The peers: llama-server and llama-batched-bench of llama.cpp, and the server that llama-cpp-python brings.

The client shares the machine's cores with those it measures, so it speaks HTTP in the few lines that a stream of
server-sent events takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from .build import LLAMA_BATCHED_BENCH, LLAMA_SERVER, PYTHON
from .contestants import Config, Contestant, Request, Stream, Unavailable


class HttpServer(Contestant):
    """A server that answers with server-sent events. One connection per request, closed by its end."""

    health: str

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]

    async def events(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """Posts and yields the data of each event. Leaving the loop closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        try:
            writer.write(_http("POST", path, json.dumps(body).encode()))
            status = await reader.readline()
            if b" 200 " not in status:
                raise Unavailable(
                    f"{self.name}: {status.decode().strip()} {(await reader.read()).decode()[-500:]}"
                )
            while line := await reader.readline():
                # Each event is written as one chunk, so that a line is never cut.
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])
                elif line.startswith(b"data: [DONE]"):
                    return
        finally:
            writer.close()

    async def _is_ready(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(_http("GET", self.health))
            status = await reader.readline()
            writer.close()
        except OSError:
            return False
        return b" 200 " in status


class LlamaServer(HttpServer):
    """llama.cpp's own server, through its native interface for prompts and the one of OpenAI's shape for chats."""

    name = "llama-server"
    health = "/health"
    options: tuple[str, ...] = ("--no-webui", "--log-verbosity", "1", "--no-kv-unified", "--cache-ram", "0")

    async def stream(self, request: Request, stream: Stream) -> None:
        """Posts to /completion or to /v1/chat/completions."""
        # The question that everybody is asked: temperature 0, and nothing else about sampling.
        body: dict[str, Any] = {"stream": True, "temperature": 0}
        body["ignore_eos"] = not request.json_schema
        if request.json_schema:
            body["json_schema"] = json.loads(request.json_schema)
        if request.messages:
            messages = [{"role": role, "content": text} for role, text in request.messages]
            body |= {"messages": messages, "max_tokens": request.max_tokens}
            body |= {"stream_options": {"include_usage": True}}
            await self._chat(body, stream)
        else:
            body |= {"prompt": request.token_ids, "n_predict": request.max_tokens}
            await self._complete(body, stream)

    async def _complete(self, body: Mapping[str, Any], stream: Stream) -> None:
        stream.begin = time.perf_counter()
        async with contextlib.aclosing(self.events("/completion", body)) as events:
            async for event in events:
                if event["content"]:
                    stream.arrived(event["content"])
                if event["stop"]:
                    stream.end = time.perf_counter()
                    stream.prompt_tokens = event["tokens_evaluated"]
                    stream.completion_tokens = event["tokens_predicted"]
                    break

    async def _chat(self, body: Mapping[str, Any], stream: Stream) -> None:
        stream.begin = time.perf_counter()
        async with contextlib.aclosing(self.events("/v1/chat/completions", body)) as events:
            async for event in events:
                text = event["choices"][0]["delta"].get("content") if event["choices"] else None
                if text:
                    stream.arrived(text)
                if usage := event.get("usage"):
                    stream.end = time.perf_counter()
                    stream.prompt_tokens = usage["prompt_tokens"]
                    stream.completion_tokens = usage["completion_tokens"]
                    break

    def _command(self) -> list[str]:
        config = self.config
        threads = ["--threads", str(config.threads), "--threads-batch", str(config.threads)]
        context = ["--parallel", str(config.slots), "--ctx-size", str(config.slots * config.context_length)]
        where = ["--model", str(config.model), "--host", "127.0.0.1", "--port", str(self._port)]
        return [str(LLAMA_SERVER), *where, *context, *threads, *self.options]


class PackagedServer(HttpServer):
    """The server that llama-cpp-python brings. It answers one request after the other."""

    name = "packaged server"
    health = "/v1/models"

    async def stream(self, request: Request, stream: Stream) -> None:
        """Posts to /v1/completions. Its stream does not tell how many tokens there were, so what came is counted."""
        body = {"prompt": request.prompt, "max_tokens": request.max_tokens, "temperature": 0, "stream": True}
        stream.begin = time.perf_counter()
        async with contextlib.aclosing(self.events("/v1/completions", body)) as events:
            async for event in events:
                if text := event["choices"][0]["text"]:
                    stream.arrived(text)
        stream.end = time.perf_counter()
        stream.prompt_tokens, stream.completion_tokens = len(request.token_ids), len(stream.times)

    def _command(self) -> list[str]:
        config = self.config
        options = {
            "model": config.model,
            "host": "127.0.0.1",
            "port": self._port,
            "n_ctx": config.context_length,
            "n_threads": config.threads,
            "n_threads_batch": config.threads,
            "interrupt_requests": False,
            "logits_all": False,
            "flash_attn": True,
            "use_mlock": False,
            "verbose": False,
        }
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        return [str(PYTHON), "-m", "llama_cpp.server", *flags]


class BatchedBench(Contestant):
    """llama.cpp's own measure of its kernels: no server, no sampling, no text. `run` starts it anew each time."""

    name = "llama-batched-bench"

    def __init__(self, config: Config, streams: int, prompt_tokens: int, completion_tokens: int) -> None:
        super().__init__(config)
        self._sizes = {"-npp": prompt_tokens, "-ntg": completion_tokens, "-npl": streams}

    async def start(self) -> None:
        """Nothing: it ends with its measurement."""

    async def run(self) -> float:
        """Returns the tokens per second of a phase in which all streams decode. Raises Unavailable."""
        with self._log.open("wb") as log:
            self._process = self._spawn(log)
        try:
            status = await asyncio.to_thread(self._process.wait)
        finally:
            await self.stop()
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.startswith("{")]
        if status != 0 or len(lines) != 1:
            raise Unavailable(f"{self.name} ended with status {status}.\n{self.log_tail()}")
        return float(json.loads(lines[0])["speed_tg"])

    async def stream(self, request: Request, stream: Stream) -> None:
        """It answers nothing."""
        raise NotImplementedError

    def cpu_seconds(self) -> float:
        """Returns the CPU seconds of the processes that have ended: the servers have not."""
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def _command(self) -> list[str]:
        config = self.config
        shape = {"-c": config.slots * config.context_length, "-t": config.threads, "-tb": config.threads}
        options = [str(value) for pair in (shape | self._sizes).items() for value in pair]
        return [str(LLAMA_BATCHED_BENCH), "-m", str(config.model), "--output-format", "jsonl", *options]

    async def _is_ready(self) -> bool:
        return True


def _http(method: str, path: str, body: bytes = b"") -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    )
    return f"{head}Content-Type: application/json\r\n\r\n".encode() + body
