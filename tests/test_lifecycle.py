"""Load, StreamLoad, Unload and WatchModels: the states of a model and the rules between them."""

from __future__ import annotations

import asyncio
import os
import pathlib
import shutil

import grpc
import pytest

from inferwire import InferwireError
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2

from .serving import DEMO, bare_stub, demo, endless, failure, rest, running, until_state

CONFIG = models_pb2.LoadConfig(context_length=256, parallel_sequences=2, threads=1)
OTHER_CONFIG = models_pb2.LoadConfig(context_length=512, parallel_sequences=2, threads=1)


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    """A model root with two files."""
    shutil.copy(DEMO, tmp_path / "a.gguf")
    shutil.copy(DEMO, tmp_path / "b.gguf")
    return tmp_path


async def test_a_load_is_shown_on_its_way_and_ends_once(root):
    """Progress with stages in order and fractions that never fall, then exactly one `loaded`."""
    async with running(model_roots=[str(root)]) as (_, client):
        events = [event async for event in client.stream_load("a", "a.gguf", config=CONFIG)]
        kinds = [event.WhichOneof("event") for event in events]
        assert ["loaded"] == [kind for kind in kinds if kind != "progress"] == kinds[-1:]
        stages = [event.progress.stage for event in events[:-1]]
        assert sorted(stages) == stages
        assert models_pb2.LOAD_STAGE_READING in stages
        for stage in set(stages):
            fractions = [event.progress.fraction for event in events[:-1] if event.progress.stage == stage]
            assert sorted(fractions) == fractions
        loaded = events[-1].loaded
        assert not loaded.already_loaded
        assert models_pb2.MODEL_STATE_READY == loaded.model.state
        assert (256, 2) == (loaded.model.config.context_length, loaded.model.config.parallel_sequences)
        assert "a.gguf" == loaded.model.source.local.path
        response = await client.complete(prompt="Once", model="a", max_tokens=3)
        assert 3 >= response.completion.usage.completion_tokens


async def test_loading_twice_is_one_load(root):
    """Callers of one load share it: one engine process, one instance; afterwards it is `already_loaded`."""
    async with running(model_roots=[str(root)]) as (server, client):
        loads = await asyncio.gather(*(client.load("a", "a.gguf", config=CONFIG) for _ in range(8)))
        assert 1 == len({load.model.instance_id for load in loads})
        again = await client.load("a", "a.gguf", config=CONFIG)
        assert again.already_loaded
        assert loads[0].model.instance_id == again.model.instance_id
        assert [1, 1] == [len(server.registry.backends()) - 1, len(_engines())]


def _engines() -> list[str]:
    """Returns the engine processes that are children of this one."""
    import subprocess

    listed = subprocess.run(
        ["ps", "-eo", "ppid=,command="], capture_output=True, text=True, check=True
    ).stdout
    return [
        line
        for line in listed.splitlines()
        if line.split(None, 1)[0] == str(os.getpid()) and "inferwire_server.engine" in line
    ]


async def test_another_config_for_a_loaded_name_is_refused_unless_it_replaces(root):
    """MODEL_CONFIG_CONFLICT; with `replace` the new one takes over and running streams finish on the old."""
    async with running(model_roots=[str(root)]) as (server, client), bare_stub(server) as stub:
        first = await client.load("a", "a.gguf", config=CONFIG)
        with pytest.raises(InferwireError) as caught:
            await client.load("a", "a.gguf", config=OTHER_CONFIG)
        assert (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_CONFIG_CONFLICT") == (
            caught.value.code,
            caught.value.reason,
        )
        old = stub.StreamComplete(endless("a"))
        started = (await old.read()).started
        replaced = await client.load("a", "b.gguf", config=OTHER_CONFIG, replace=True)
        assert started.model_instance_id == first.model.instance_id != replaced.model.instance_id
        assert 512 == replaced.model.context_length
        new = await client.complete(prompt="Once", model="a", max_tokens=1)
        assert replaced.model.instance_id == new.started.model_instance_id
        assert "completion" == (await rest(old))[-1].WhichOneof("event")


async def test_a_failed_replacement_leaves_the_old_model_serving(root):
    """The old instance stays until the new one is READY."""
    (root / "broken.gguf").write_bytes(b"GGUF nonsense")
    async with running(model_roots=[str(root)]) as (_, client):
        first = await client.load("a", "a.gguf", config=CONFIG)
        with pytest.raises(InferwireError) as caught:
            await client.load("a", "broken.gguf", replace=True)
        assert "MODEL_FILE_INVALID" == caught.value.reason
        response = await client.complete(prompt="Once", model="a", max_tokens=1)
        assert first.model.instance_id == response.started.model_instance_id
        assert (await client.load("a", "a.gguf", config=CONFIG)).already_loaded


async def test_another_load_of_a_loading_name_is_busy(root):
    """Two loads of one name with different settings do not race."""
    async with running(model_roots=[str(root)]) as (_, client):
        one = asyncio.ensure_future(client.load("a", "a.gguf", config=CONFIG))
        while not any(model.name == "a" for model in (await client.list_models()).models):
            pass
        with pytest.raises(InferwireError) as caught:
            await client.load("a", "a.gguf", config=OTHER_CONFIG)
        assert (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_BUSY") == (caught.value.code, caught.value.reason)
        await one


async def test_a_caller_that_goes_away_does_not_stop_a_load(root):
    """A load is a change of the server, not of the call; Unload stops it."""
    async with running(model_roots=[str(root)]) as (server, client):
        async for _event in client.stream_load("a", "a.gguf", config=CONFIG):
            break
        await until_state(server, "a", models_pb2.MODEL_STATE_READY)


async def test_an_unload_stops_a_running_load(root):
    """Who waits for the load is told LOAD_CANCELLED; the engine process is gone."""
    async with running(model_roots=[str(root)]) as (server, client):
        waiting = asyncio.ensure_future(client.load("a", "a.gguf", config=CONFIG))
        while not any(model.name == "a" for model in (await client.list_models()).models):
            pass
        assert (await client.unload("a")).was_loaded
        with pytest.raises(InferwireError) as caught:
            await waiting
        assert (grpc.StatusCode.ABORTED, "LOAD_CANCELLED") == (caught.value.code, caught.value.reason)
        assert [] == _engines()
        assert ["scripted"] == [model.name for model in server.registry.models()]


async def test_unload_lets_streams_finish_and_refuses_new_ones(root):
    """READY, DRAINING, gone: running streams end OK, new ones get MODEL_UNLOADING, then MODEL_NOT_FOUND."""
    async with running(model_roots=[str(root)]) as (server, client), bare_stub(server) as stub:
        await client.load("a", "a.gguf", config=CONFIG)
        held = stub.StreamComplete(endless("a"))
        await held.read()
        unloading = asyncio.ensure_future(client.unload("a", drain_timeout=60))
        await until_state(server, "a", models_pb2.MODEL_STATE_DRAINING)
        error = await failure(stub.Complete(pb.CompleteRequest(prompt="Once", model="a")))
        assert (grpc.StatusCode.UNAVAILABLE, "MODEL_UNLOADING") == (error.code, error.reason)
        assert "completion" == (await rest(held))[-1].WhichOneof("event")
        answer = await unloading
        assert (True, 0) == (answer.was_loaded, answer.streams_ended)
        gone = await failure(stub.Complete(pb.CompleteRequest(prompt="Once", model="a")))
        assert (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND") == (gone.code, gone.reason)
        assert "a" == gone.resource
        assert not (await client.unload("a")).was_loaded
        assert [] == _engines()


async def test_unload_ends_streams_that_outlast_the_drain(root):
    """At the end of the drain timeout they are ABORTED MODEL_UNLOADED; a second Unload can shorten the first."""
    async with running(model_roots=[str(root)]) as (server, client), bare_stub(server) as stub:
        await client.load("a", "a.gguf", config=models_pb2.LoadConfig(parallel_sequences=1, threads=1))
        held = [stub.StreamComplete(endless("a", progress=True)) for _ in range(3)]
        for call in held:
            await call.read()
        slow = asyncio.ensure_future(client.unload("a", drain_timeout=600))
        await until_state(server, "a", models_pb2.MODEL_STATE_DRAINING)
        answer = await client.unload("a", drain_timeout=0)
        assert (True, 3) == (answer.was_loaded, answer.streams_ended)
        assert answer == await slow
        for call in held:
            error = await failure(call)
            assert (grpc.StatusCode.ABORTED, "MODEL_UNLOADED") == (error.code, error.reason)


async def test_a_model_of_the_configuration_stays_known_when_it_is_unloaded():
    """UNLOADED refuses requests, and Load needs nothing but the name to bring it back."""
    async with running(models={"demo": demo()}) as (server, client), bare_stub(server) as stub:
        await client.unload("demo")
        assert models_pb2.MODEL_STATE_UNLOADED == (await client.get_model("demo")).state
        error = await failure(stub.Complete(pb.CompleteRequest(prompt="Once")))
        assert (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_NOT_LOADED") == (error.code, error.reason)
        assert models_pb2.MODEL_STATE_READY == (await client.load("demo")).model.state


async def test_a_model_is_unloaded_when_nobody_used_it_for_its_keep_alive(root):
    """keep_alive counts from the last request's end."""
    async with running(model_roots=[str(root)]) as (server, client):
        await client.load("a", "a.gguf", config=CONFIG, keep_alive=0.3)
        await client.complete(prompt="Once", model="a", max_tokens=1)
        while any(model.name == "a" for model in server.registry.models()):
            await server.registry.changes.after(server.registry.changes.revision)
        assert [] == _engines()


async def test_watchers_see_every_state_that_lasts(root):
    """Whole snapshots with growing revisions: LOADING, READY, DRAINING, gone."""
    async with running(model_roots=[str(root)]) as (server, client), bare_stub(server) as stub:
        revisions: list[int] = []
        snapshots = aiter(client.watch_models())

        async def until(state: int | None) -> None:
            async for snapshot in snapshots:
                revisions.append(snapshot.revision)
                if state == next((model.state for model in snapshot.models if model.name == "a"), None):
                    return

        await until(None)
        loading = asyncio.ensure_future(client.load("a", "a.gguf", config=CONFIG))
        await until(models_pb2.MODEL_STATE_LOADING)
        await loading
        await until(models_pb2.MODEL_STATE_READY)
        held = [stub.StreamComplete(endless("a", progress=True)) for _ in range(8)]
        for call in held:
            await call.read()
        unloading = asyncio.ensure_future(client.unload("a"))
        await until(models_pb2.MODEL_STATE_DRAINING)
        for call in held:
            await rest(call)
        await unloading
        await until(None)
        assert sorted(set(revisions)) == revisions


async def test_watchers_see_how_many_streams_a_model_has_and_how_many_wait(root):
    """When one begins, when it waits, when it gets its turn and when it ends: nothing else has to happen to show it."""
    async with running(model_roots=[str(root)]) as (server, client), bare_stub(server) as stub:
        await client.load("a", "a.gguf", config=CONFIG)
        snapshots = aiter(client.watch_models())

        async def until(streams: int, queued: int) -> None:
            async for snapshot in snapshots:
                (model,) = [model for model in snapshot.models if model.name == "a"]
                if (streams, queued) == (model.streams_in_flight, model.queue_length):
                    return

        await until(0, 0)
        calls = []
        for expected in ((1, 0), (2, 0), (3, 1)):
            calls.append(stub.StreamComplete(endless("a", progress=True)))
            await until(*expected)
        for expected in ((2, 0), (1, 0), (0, 0)):
            calls.pop(0).cancel()
            await until(*expected)


async def test_memory_is_told_while_a_model_is_loaded(root):
    """A loaded model says what its process holds; the process ends with the unload."""
    async with running(model_roots=[str(root)]) as (_, client):
        loaded = await client.load("a", "a.gguf", config=CONFIG)
        if pathlib.Path("/proc/self/statm").exists():
            assert 10 << 20 < loaded.model.memory_bytes < 1 << 30
        await client.unload("a")
        assert [] == _engines()
