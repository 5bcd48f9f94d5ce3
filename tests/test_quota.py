"""How much each principal may ask for, and when it may ask again."""

from __future__ import annotations

import hashlib
import pathlib
from typing import Any

import pytest

from inferwire import AsyncClient
from inferwire.v1 import inference_pb2 as pb
from inferwire_server import errors
from inferwire_server.access import Limits, Principal
from inferwire_server.departures import Departures
from inferwire_server.quota import Quotas

from .serving import bare_stub, failure, running, until_idle


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


_held = []


def begin(quotas: Quotas, who: Principal) -> Any:
    """Begins a call that runs until its context is left. It is held, because a forgotten one would end by itself."""
    entered = quotas.entered(who)
    account = entered.__enter__()
    _held.append(entered)
    return entered, account


def refusal(quotas: Quotas, who: Principal) -> tuple[str, float]:
    with pytest.raises(errors.RateLimited) as refused, quotas.entered(who):
        pass
    assert refused.value.retry_delay_seconds is not None
    return refused.value.metadata["limit"], refused.value.retry_delay_seconds


class TestLimits:
    def test_calls_at_a_time(self) -> None:
        """As many as allowed and no more; each that ends makes room for one."""
        clock = Clock()
        quotas, who = Quotas(clock), Principal("a", limits=Limits(max_concurrent=2))
        calls = [begin(quotas, who)[0] for _ in range(2)]
        assert "max_concurrent" == refusal(quotas, who)[0]
        calls.pop().__exit__(None, None, None)
        begin(quotas, who)
        assert "max_concurrent" == refusal(quotas, who)[0]

    def test_the_delay_is_what_others_took(self) -> None:
        """Who is refused is told when a place will probably be free: after as long as the last ones took."""
        clock = Clock()
        quotas, who = Quotas(clock), Principal("a", limits=Limits(max_concurrent=1))
        entered, _ = begin(quotas, who)
        clock.now += 4.0
        entered.__exit__(None, None, None)
        begin(quotas, who)
        assert ("max_concurrent", 4.0) == refusal(quotas, who)

    def test_calls_per_minute(self) -> None:
        """A minute's calls may come at once; then one comes through as often as the rate says, and the delay says when."""
        clock = Clock()
        quotas, who = Quotas(clock), Principal("a", limits=Limits(requests_per_minute=6))
        for _ in range(6):
            begin(quotas, who)
        assert ("requests_per_minute", 10.0) == refusal(quotas, who)
        clock.now += 9.0
        assert "requests_per_minute" == refusal(quotas, who)[0]
        clock.now += 1.001
        begin(quotas, who)
        refusal(quotas, who)
        clock.now += 3600
        for _ in range(6):
            begin(quotas, who)
        refusal(quotas, who)

    def test_tokens_per_minute(self) -> None:
        """A long answer overdraws the account, which is closed until it is even again."""
        clock = Clock()
        quotas, who = Quotas(clock), Principal("a", limits=Limits(tokens_per_minute=60))
        _, account = begin(quotas, who)
        account.spend(100)
        name, seconds = refusal(quotas, who)
        assert ("tokens_per_minute", 41.0) == (name, round(seconds, 6))
        clock.now += 41.001
        begin(quotas, who)

    def test_principals_do_not_share(self) -> None:
        """One who has used up everything takes nothing from another."""
        quotas, limits = Quotas(Clock()), Limits(max_concurrent=1)
        begin(quotas, Principal("a", limits=limits))
        begin(quotas, Principal("b", limits=limits))
        refusal(quotas, Principal("a", limits=limits))

    def test_new_limits_count_what_runs(self) -> None:
        """When the operator changes a limit, running calls stay counted."""
        quotas = Quotas(Clock())
        begin(quotas, Principal("a", limits=Limits(max_concurrent=3)))
        refusal(quotas, Principal("a", limits=Limits(max_concurrent=1)))

    def test_a_refused_call_counts_nothing(self) -> None:
        """Asking in vain does not make the wait longer."""
        clock = Clock()
        quotas, who = Quotas(clock), Principal("a", limits=Limits(requests_per_minute=1))
        begin(quotas, who)
        for _ in range(10):
            assert ("requests_per_minute", 60.0) == refusal(quotas, who)


class TestDepartures:
    def test_only_full_intervals_count(self) -> None:
        """A departure tells something only if its place was wanted from the last departure on."""
        departures = Departures(1.0)
        departures.arrived(0.0, is_full=False)
        departures.left(50.0, is_full=False)
        assert 2.0 == departures.wait_seconds(2)
        departures.arrived(60.0, is_full=True)
        departures.left(63.0, is_full=True)
        assert 3.0 == departures.wait_seconds(1)
        departures.left(66.0, is_full=False)
        departures.left(99.0, is_full=False)
        assert (0.0, 6.0) == (departures.wait_seconds(0), departures.wait_seconds(2))


async def test_over_the_wire(tmp_path: pathlib.Path) -> None:
    """The refusal is RESOURCE_EXHAUSTED RATE_LIMITED with RetryInfo and pushback, and another key is not touched."""
    keys = tmp_path / "keys.toml"
    keys.write_text(
        "".join(
            f"[keys.{name}]\nsha256 = '{hashlib.sha256(name.encode()).hexdigest()}'\nscopes = ['infer']\n{more}\n"
            for name, more in (("one", "max_concurrent = 1"), ("two", ""))
        )
    )
    async with (
        running(keys_file=str(keys)) as (server, _),
        AsyncClient(f"127.0.0.1:{server.port}", token="two") as other,
        bare_stub(server) as stub,
    ):
        own = {"metadata": (("authorization", "Bearer one"),)}
        endless = pb.CompleteRequest(
            model="scripted", prompt='{"events": [{"text": "a"}, {"delay_seconds": 600}]}'
        )
        call = stub.StreamComplete(endless, **own)
        await call.read()
        told = await failure(stub.Complete(pb.CompleteRequest(model="scripted", prompt="a"), **own))
        assert ("RESOURCE_EXHAUSTED", "RATE_LIMITED", {"limit": "max_concurrent"}) == (
            told.code.name,
            told.reason,
            dict(told.metadata),
        )
        assert told.retry_delay is not None
        await other.complete(model="scripted", prompt="a")
        # Questions about models are not work: they have a lane of their own.
        await stub.ListModels(pb.ListModelsRequest(), **own)
        call.cancel()
        await until_idle(server)
        await stub.Complete(pb.CompleteRequest(model="scripted", prompt="a"), **own)
