"""R28, R29, R31, R32: what a caller is told of failures is exact, fits, and opens nothing that is not the caller's."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import time

import grpc

from inferwire import InferwireError
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire.v1.models_pb2_grpc import ModelServiceStub
from inferwire_server import access, errors, files, status
from inferwire_server.config import Settings
from inferwire_server.server import Server
from tests.hostile import paths
from tests.reasons import MAX_TRAILER_BYTES, codes_of, trailer_bytes
from tests.serving import bare_stub, running
from tests.test_access import KEYS_FILE, SCOPES, is_right, outcome, request_of, served

CREDENTIALS = (None, "wrong", "expired", *SCOPES)


async def raised(stub, script: dict[str, object], *, has_begun: bool) -> grpc.aio.AioRpcError:
    """Returns how a stream ends that fails as a script says, before or after its first delta."""
    events = [{"text": "a"}] * has_begun + [{"error": script}]
    prompt = json.dumps({"events": events})
    call = stub.StreamComplete(pb.CompleteRequest(model="scripted", prompt=prompt))
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError(f"{script} ended OK")


async def unlike_the_contract(server: Server) -> list[str]:
    """Returns the reasons whose code, reason or retryability at the caller is not what the contract's comments say."""
    wrong = []
    async with bare_stub(server) as stub:
        for reason in errors.BY_REASON:
            *codes, may_retry = codes_of(reason)
            for has_begun, code in zip((False, True), codes, strict=True):
                ended = await raised(stub, {"reason": reason}, has_begun=has_begun)
                told = InferwireError.of(ended)
                pushback = dict(ended.trailing_metadata()).get("grpc-retry-pushback-ms")
                invites = told.retry_delay is not None and pushback not in (None, "-1")
                is_safe = (
                    invites or pushback == "-1" or code.name not in ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
                )
                if (told.code, told.reason, invites) != (
                    code,
                    reason,
                    may_retry and not has_begun,
                ) or not is_safe:
                    wrong.append(f"{reason}, begun {has_begun}: {told.code} {told.reason} {pushback}")
    return wrong


async def test_r28_every_reason_is_told_as_the_contract_says(card, monkeypatch):
    """Code, reason and whether to retry, before and after the first delta, through a real call. Another code is seen."""
    num = 2 * len(errors.BY_REASON)
    async with running() as (server, _):
        wrong = await unlike_the_contract(server)
        card.tell("R28", "wrong", len(wrong), n=num)
        assert [] == wrong

        row = dataclasses.replace(status.TABLE[errors.EngineCrashed], before=grpc.StatusCode.INTERNAL)
        monkeypatch.setitem(status.TABLE, errors.EngineCrashed, row)
        assert 1 == len(await unlike_the_contract(server))


async def largest_trailers(server: Server, texts: list[str]) -> int:
    """Returns the bytes of the largest trailers that long and foreign words bring about, of every reason."""
    largest = 0
    options = [("grpc.enable_retries", 0), ("grpc.max_metadata_size", 1 << 20)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options) as channel:
        from inferwire.v1.inference_pb2_grpc import InferenceServiceStub

        stub = InferenceServiceStub(channel)
        ends = []
        for reason in errors.BY_REASON:
            for text in texts:
                words = {f"someLongishKey{number}": text * 500 for number in range(6)} | {"model": text * 500}
                script = {"reason": reason, "message": text * 2000, "metadata": words}
                ends.append(await raised(stub, {**script, "retry_delay_seconds": 1e9}, has_begun=False))
        many = pb.CompleteRequest(model="scripted")
        for _ in range(200):
            many.chat.messages.add(role=99).parts.add().tool_call.name = "é" * 1000
        for request in (many, pb.CompleteRequest(prompt="x", model="é" * 3000)):
            try:
                await stub.Complete(request)
            except grpc.aio.AioRpcError as error:
                ends.append(error)
        for end in ends:
            metadata = tuple(end.trailing_metadata())
            largest = max(largest, trailer_bytes(end.code(), end.details() or "", metadata))
    return largest


async def test_r29_a_status_fits(card, monkeypatch):
    """At most 6 KiB of trailers, whatever the words: clients refuse larger ones and hide our status. Without the cut they are
    larger.
    """
    texts = ["a", "%", "€", "😀"]
    async with running() as (server, _):
        largest = await largest_trailers(server, texts)
        card.tell("R29", "bytes", largest, n=len(texts) * len(errors.BY_REASON) + 2)
        assert largest <= MAX_TRAILER_BYTES

        monkeypatch.setattr(status, "MAX_METADATA_BYTES", 2000)
        assert await largest_trailers(server, ["€"]) > MAX_TRAILER_BYTES


async def unlike_the_table(keys_file: pathlib.Path) -> list[str]:
    """Returns the calls that did not end as their credential demands."""
    wrong = []
    server = Server(Settings(address="127.0.0.1:0", scripted=True, keys_file=str(keys_file)))
    await server.start()
    try:
        address = f"127.0.0.1:{server.port}"
        async with grpc.aio.insecure_channel(address) as channel:
            for method in served():
                for key in CREDENTIALS:
                    told = await outcome(channel, method, key, request_of(method), address=address)
                    if not is_right(method, key, told):
                        wrong.append(f"{method} with {key}: {told}")
    finally:
        await server.stop(drain_seconds=0)
    return wrong


async def test_r31_nobody_may_do_what_his_key_does_not_say(card, tmp_path, monkeypatch):
    """Every RPC of every service with every kind of credential; each RPC has its scope. A door that lets everybody in is seen."""
    keys_file = tmp_path / "keys.toml"
    keys_file.write_text(KEYS_FILE)
    wrong = await unlike_the_table(keys_file)
    open_ = set(served()) - set(access.NEEDED)
    card.tell("R31", "wrong", len(wrong), n=len(served()) * len(CREDENTIALS))
    card.tell("R31", "open", len(open_), n=len(served()))
    assert [] == wrong
    assert set() == open_

    monkeypatch.setattr(access.Access, "check", staticmethod(lambda principal, method: None))
    assert [] != await unlike_the_table(keys_file)


def told_apart(it: access.Access, near: str, far: str, draw: random.Random, num: int) -> float:
    """Returns how well the time of a refusal tells a key that is nearly right from one that is not at all: the share of pairs in
    which the near one takes longer, off one half, in percent. 0 is not at all, 50 is always.
    """
    times: dict[str, list[int]] = {near: [], far: []}
    for key in draw.sample([near, far] * num, 2 * num):
        begin = time.perf_counter_ns()
        with contextlib.suppress(errors.TokenInvalid):
            it.identify({"authorization": f"Bearer {key}"})
        times[key].append(time.perf_counter_ns() - begin)
    ranked = sorted((taken, key == near) for key in times for taken in times[key])
    ranks = sum(rank for rank, (_, is_near) in enumerate(ranked, 1) if is_near)
    share = (ranks - num * (num + 1) / 2) / num**2
    return 100 * abs(share - 0.5)


def test_r31_time_tells_nothing_of_a_key(card, draw, tmp_path, monkeypatch):
    """A guess that shares all but its last character with a key is refused no sooner and no later than any other. Comparing character
    by character, which would give a key away, is seen.
    """
    num = 2000
    key, digest = access.new_key()
    keys_file = tmp_path / "keys.toml"
    keys_file.write_text(f'[keys.a]\nsha256 = "{digest}"\nscopes = ["infer"]\n')
    it = access.Access(keys_file)
    assert "a" == it.identify({"authorization": f"Bearer {key}"}).name
    near, far = f"{key[:-1]}{'A' if key[-1] != 'A' else 'B'}", f"xx{key[2:-1]}x"
    card.tell("R31", "timing", told_apart(it, near, far, draw, num), n=2 * num)

    def naive(self, metadata, certificate=()):
        for mine, given in zip(key, metadata["authorization"].removeprefix("Bearer "), strict=True):
            if mine != given:
                raise errors.TokenInvalid("the key is not valid")

    monkeypatch.setattr(access.Access, "identify", naive)
    assert told_apart(it, near, far, draw, num) > 25


class Opened:
    """What this process opens below a directory, by its real path."""

    def __init__(self, monkeypatch) -> None:
        self.files: set[pathlib.Path] = set()
        real = os.open

        def recording(path, flags, mode=0o777, *, dir_fd=None) -> int:
            fd = real(path, flags, mode, dir_fd=dir_fd)
            self.files.add(pathlib.Path(f"/proc/self/fd/{fd}").readlink())
            return fd

        monkeypatch.setattr(os, "open", recording)

    def beyond(self, root: pathlib.Path) -> list[pathlib.Path]:
        """Returns the files that were opened and do not lie beneath the root."""
        return sorted(file for file in self.files if not file.is_relative_to(root))


async def told_of(server: Server, path: str) -> tuple[object, ...]:
    """Returns all that a caller is told of a load of a path."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        request = models_pb2.LoadRequest(model="m")
        try:
            request.source.local.path = path
        except UnicodeEncodeError:
            return ()  # cannot be sent
        try:
            await ModelServiceStub(channel).Load(request)
        except grpc.aio.AioRpcError as error:
            told = InferwireError.of(error)
            metadata = {key: value for key, value in told.metadata.items() if key != "errorId"}
            return told.code, told.reason, told.message, metadata, tuple(told.violations)
        return ("loaded",)


async def test_r32_no_path_leads_out_of_the_roots(card, tmp_path, monkeypatch):
    """Nothing outside is ever opened, and whether something is there is not told. A server that joins paths is seen."""
    root = paths.plant(tmp_path)
    payloads = paths.payloads()
    opened = Opened(monkeypatch)
    async with running(model_roots=[str(root)]) as (server, _):
        for payload in payloads:
            assert ("loaded",) != await told_of(server, payload), payload
        differing = [
            pair for pair in paths.TWINS if await told_of(server, pair[0]) != await told_of(server, pair[1])
        ]
        outside = opened.beyond(root)
        card.tell("R32", "opened", len(outside), n=len(payloads))
        card.tell("R32", "oracle", len(differing), n=len(paths.TWINS))
        assert [] == outside
        assert [] == differing

        def naive(root: pathlib.Path, parts) -> int:
            return os.open(root.joinpath(*parts), os.O_RDONLY)

        monkeypatch.setattr(files, "_open_beneath", naive)
        await told_of(server, "out.gguf")
        assert [] != opened.beyond(root)
