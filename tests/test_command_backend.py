"""Commands as providers: real processes that say what a test wrote down, and misbehave as it says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import msgspec
import psutil
import pytest

from inferwire import InferwireError
from inferwire.v1 import error_reason_pb2
from inferwire.v1 import inference_pb2 as pb
from inferwire_server import errors
from inferwire_server.backends.base import Event, as_message
from inferwire_server.backends.command import KEPT_ENVIRONMENT, TEMPLATES, Command, conversation, fill
from inferwire_server.backends.provider import RemoteBackend
from inferwire_server.config import BackendSettings, ConfigError
from tests.providers.asking import chat, collect, new_call
from tests.serving import running

COMMANDS = pathlib.Path(__file__).parent / "providers" / "commands"
PLAY = [sys.executable, "-IS", str(COMMANDS / "play.py")]
MODEL = "m"
SECRET = "secret-words"
# For what happens at once, on a machine that may be busy.
WAIT_SECONDS = 10


def settings(
    *steps: str, models: tuple[str, ...] = (MODEL,), idle_seconds: float = 20.0, **options: object
) -> BackendSettings:
    return BackendSettings(
        type="command",
        models=list(models),
        health_seconds=0,
        idle_seconds=idle_seconds,
        options={**({"argv": [*PLAY, *steps]} if steps else {}), **options},
    )


def command(*steps: str, **more: object) -> Command:
    return Command("c", settings(*steps, **more))


def backend(*steps: str, **more: object) -> RemoteBackend:
    return command(*steps, **more).backend(MODEL)


def text(answer: pb.CompleteResponse) -> str:
    return "".join(part.text for part in answer.message.parts)


def thought(answer: pb.CompleteResponse) -> str:
    return "".join(part.reasoning.text for part in answer.message.parts)


async def failure(asked: RemoteBackend, request: pb.CompleteRequest | None = None) -> errors.ServingError:
    with pytest.raises(errors.ServingError) as caught:
        await collect(asked, request or chat())
    return caught.value


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until_dead(*pids: int) -> None:
    """Waits for processes that were killed, and fails for those that were not."""

    def look() -> None:
        end = time.monotonic() + WAIT_SECONDS
        while any(is_alive(pid) for pid in pids) and time.monotonic() < end:
            time.sleep(0.01)

    await asyncio.to_thread(look)
    assert [] == [pid for pid in pids if is_alive(pid)]


@contextlib.asynccontextmanager
async def begun(asked: RemoteBackend) -> AsyncIterator[tuple[str, AsyncIterator[Event]]]:
    """Yields the first text of an answer and what comes after it; closes the answer."""
    request = chat(model=MODEL)
    async with contextlib.aclosing(asked.stream(request, new_call())) as events:
        assert "started" == (await anext(events)).WhichOneof("event")
        yield as_message(await anext(events)).text.text, events


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    """No test leaves a process, not even a zombie."""
    yield
    assert [] == psutil.Process().children(recursive=True)


# What it says.


async def test_plain_text_is_the_answer():
    """What a command prints is the text; the line ends at the end are not, those within are."""
    answer = await collect(backend("out:Hel", "out:lo,\n\n", "out:world\n", "out:\r\n"), chat())
    assert "Hello,\n\nworld" == text(answer)
    assert pb.FINISH_REASON_STOP == answer.completion.finish_reason


async def test_text_comes_while_the_command_runs():
    """A delta is there before the command ends."""
    async with begun(backend("out:first", "wait")) as (first, _):
        assert "first" == first


async def test_no_output_is_an_empty_answer():
    """Exit code 0 is the end, whatever came before it."""
    assert "" == text(await collect(backend("out:"), chat()))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["hex:f0", "hex:9f", "hex:99", "hex:82"], "🙂"),
        (["hex:c3", "hex:b6", "out:!"], "ö!"),
        (["hex:ff", "out:a"], "\ufffda"),
        (["out:a", "hex:f09f99"], "a\ufffd"),
    ],
)
async def test_characters_are_held_back_until_they_are_whole(steps, expected):
    """No delta has half of a character, and bytes that can never become one turn into U+FFFD."""
    assert expected == text(await collect(backend(*steps), chat()))


async def test_the_prompt_is_on_standard_input():
    """All of it, and then its end."""
    prompt = "ö 'quoted' $HOME\n" * 20_000
    assert prompt.rstrip("\n") == text(await collect(backend("stdin"), chat(prompt)))
    raw = pb.CompleteRequest(prompt="as it is")
    assert "as it is" == text(await collect(backend("stdin"), raw))


async def test_a_prompt_that_nobody_reads_harms_nobody():
    """More than any pipe holds, with and without a reader's end that stays open."""
    large = chat("x" * (4 << 20))
    assert "done" == text(await collect(backend("out:done"), large))
    assert "done" == text(await collect(backend("close:0", "out:done"), large))
    asked = backend("out:first", "wait")
    async with contextlib.aclosing(asked.stream(large, new_call())) as events:
        await anext(events)
        await anext(events)


async def test_much_output_comes_whole():
    """More than is ever held at once."""
    assert 8 << 20 == len(text(await collect(backend(f"repeat:x:{8 << 20}"), chat())))


async def test_too_much_output_is_no_answer():
    """The bound is the operator's."""
    error = await failure(backend("repeat:x:100001", "wait", max_output_bytes=100_000))
    assert ("UPSTREAM_PROTOCOL_ERROR", "more than 100000 bytes") == (error.reason, error.detail)


async def test_a_slow_reader_slows_the_command():
    """What nobody takes is bounded: the command waits in the middle of its output."""
    asked = command(f"repeat:x:{64 << 20}", max_output_bytes=64 << 20)
    async with begun(asked.backend(MODEL)):
        (process,) = asked._running
        for _ in range(200):
            await asyncio.sleep(0.001)
        assert 1 << 20 > len(process._held)


# How it fails.


@pytest.mark.parametrize(
    ("steps", "end"),
    [
        (["exit:3"], "exit code 3"),
        (["out:some text", "exit:3"], "exit code 3"),
        (["die:9"], "signal 9"),
    ],
)
async def test_a_command_that_fails_tells_nothing_of_its_own(steps, end, capfd):
    """The caller learns that it failed, the operator's log how it ended, and nobody what it wrote to standard error."""
    error = await failure(backend(f"err:{SECRET}", *steps))
    assert ("UPSTREAM_UNAVAILABLE", f"{end}, {len(SECRET)} bytes on standard error") == (
        error.reason,
        error.detail,
    )
    assert SECRET not in str(vars(error))
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "steps",
    [["wait"], ["out:hi", "wait"], ["out:hi", "close:1", "wait"], ["out:hi", "close:1", "close:2", "wait"]],
)
async def test_a_command_that_hangs_is_ended(steps):
    """The time without output is bounded, and so is that between the end of the output and the end of the command."""
    error = await failure(backend(*steps, idle_seconds=0.3))
    assert "UPSTREAM_STALLED" == error.reason


async def test_a_time_limit_ends_the_command():
    """What came is the answer."""
    asked = backend("out:some", "wait")
    answer = await collect(asked, chat(), new_call(seconds=0.5))
    assert (pb.FINISH_REASON_TIME_LIMIT, "some") == (answer.completion.finish_reason, text(answer))


async def test_a_stop_text_ends_the_command():
    """It needs no support of the command's."""
    request = chat()
    request.stopping.stop.append("wor")
    answer = await collect(backend("out:Hello, world", "wait"), request)
    assert ("wor", "Hello, ") == (answer.completion.stop_string, text(answer))


@pytest.mark.parametrize("program", ["no-such-command", "/no/such/command", "./no-such-command"])
async def test_a_command_that_is_not_there(program):
    """The check says so without running anything, a request fails, and both tell the operator which it is."""
    missing = command(argv=[program])
    with pytest.raises(errors.UpstreamUnavailable) as caught:
        await missing.check()
    assert f"no command {program}" == caught.value.detail
    error = await failure(missing.backend(MODEL))
    assert ("UPSTREAM_UNAVAILABLE", "ENOENT") == (error.reason, error.detail)


async def test_a_file_that_cannot_be_run(tmp_path):
    """Nor one without permission, nor in a directory that is not there."""
    (tmp_path / "tool").write_text("#!/bin/sh\n")
    for missing in (command(argv=[str(tmp_path / "tool")]), command("out:hi", cwd=str(tmp_path / "none"))):
        with pytest.raises(errors.UpstreamUnavailable):
            await missing.check()
        assert "UPSTREAM_UNAVAILABLE" == (await failure(missing.backend(MODEL))).reason


@pytest.mark.parametrize(
    "options", [{"argv": ["tool"], "environment": {"PATH": "{}"}}, {"argv": ["./tool"], "cwd": "{}"}]
)
async def test_a_command_is_found_as_the_system_finds_it(options, tmp_path):
    """By the command's own PATH, or from its own directory."""
    (tmp_path / "tool").write_text("#!/bin/sh\necho found\n")
    (tmp_path / "tool").chmod(0o755)
    filled = msgspec.json.decode(msgspec.json.encode(options).replace(b"{}", str(tmp_path).encode()))
    found = command(**filled)
    await found.check()
    assert "found" == text(await collect(found.backend(MODEL), chat()))


async def test_no_more_run_than_the_operator_allows():
    """Beyond it a request is told to come again; as soon as one is over there is room."""
    asked = command("out:{model}", "wait", models=("m", "n"), max_processes=1)
    async with begun(asked.backend("m")):
        error = await failure(asked.backend("n"))
        assert ("QUEUE_FULL", 1.0) == (error.reason, error.retry_delay_seconds)
    async with begun(asked.backend("m")) as (first, _):
        assert "m" == first


# How it ends.


async def test_closing_an_answer_ends_the_command_and_what_it_started():
    """The whole group: a grandchild that sleeps is gone too."""
    async with begun(backend("pid", "spawn", "wait")) as (first, events):
        pids = [int(pid) for pid in first.split()]
        if len(pids) < 2:
            pids.append(int(as_message(await anext(events)).text.text))
        assert all(is_alive(pid) for pid in pids)
    await until_dead(*pids)


async def test_what_a_command_leaves_behind_is_ended_with_it():
    """An answer is whole when its command has ended, and does not wait for a grandchild that holds the pipes."""
    answer = await collect(backend("spawn", "out:done"), chat())
    pid, done = text(answer).split()
    assert "done" == done
    await until_dead(int(pid))


async def test_who_leaves_the_group_delays_nobody():
    """A process in a session of its own is none of ours; that it holds the pipes is of no interest, not even a full one."""
    answer = await collect(backend("spawn-apart", "out:done"), chat("x" * (4 << 20)))
    pid, done = text(answer).split()
    os.kill(int(pid), signal.SIGKILL)
    assert "done" == done


async def test_a_command_may_end_in_its_own_way(tmp_path):
    """SIGTERM comes first, and what it still writes is taken from it."""
    ended = tmp_path / "ended"
    async with begun(backend(f"on-term:{ended}", f"repeat:x:{16 << 20}", "wait", stop_seconds=20)):
        pass
    assert ended.exists()


async def test_a_command_that_does_not_end_is_killed():
    """After the time that it has for it."""
    async with begun(backend("ignore-term", "pid", "wait", stop_seconds=0.1)) as (first, _):
        pid = int(first)
    assert not psutil.pid_exists(pid)


async def test_a_cancel_ends_the_command():
    """As closing does; a second cancel, while the command takes its time, kills it at once."""
    asked = command("ignore-term", "pid", "wait", stop_seconds=3600)
    first: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def read() -> None:
        async with begun(asked.backend(MODEL)) as (begin, events):
            first.set_result(begin)
            await anext(events)

    task = asyncio.create_task(read())
    pid = int(await first)
    (process,) = asked._running
    task.cancel()
    while not process._is_closing:
        await asyncio.wait([task], timeout=0.001)
    assert is_alive(pid)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_dead(pid)
    await asyncio.wait([process._gone])
    assert not asked._running


async def test_closing_the_provider_ends_what_runs():
    """As the server's end does."""
    asked = command("pid", "wait")
    async with begun(asked.backend(MODEL)) as (first, events):
        await asked.close()
        assert not psutil.pid_exists(int(first))
        with pytest.raises(errors.UpstreamUnavailable):
            await anext(events)


async def test_nothing_stays_open():
    """However runs end, the files that they had open are closed."""
    runs = [
        backend("out:done"),
        backend("spawn", "exit:1"),
        backend("out:hi", "close:1", "wait", idle_seconds=0.1),
        backend(argv=["no-such-command"]),
    ]
    await collect(runs[0], chat())
    before = psutil.Process().num_fds()
    for _ in range(3):
        await collect(runs[0], chat("x" * (1 << 20)))
        for run in runs[1:]:
            await failure(run, chat("x" * (1 << 20)))
        async with begun(backend("spawn", "wait")):
            pass
    assert before == psutil.Process().num_fds()


# What it is told.

CHATS = [
    ([("user", "Hello?")], "", "Hello?"),
    ([("system", "Be brief."), ("user", "Hello?")], "Be brief.", "Hello?"),
    ([("system", "Be brief."), ("system", "Be kind."), ("user", "-x")], "Be brief.\n\nBe kind.", "-x"),
    (
        [("user", "Hello?"), ("assistant", "Yes?"), ("user", "2+2?")],
        "",
        "User: Hello?\n\nAssistant: Yes?\n\nUser: 2+2?\n\nAssistant:",
    ),
    (
        [("user", "Hot?"), ("call", '{"city": "Köln"}'), ("result", "20°"), ("user", "And now?")],
        "",
        'User: Hot?\n\nAssistant calls weather: {"city": "Köln"}\n\nResult of weather: 20°\n\nUser: And now?\n\nAssistant:',
    ),
    (
        [("user", "Hot?"), ("call", "{}"), ("error", "no city")],
        "",
        "User: Hot?\n\nAssistant calls weather: {}\n\nError of weather: no city\n\nAssistant:",
    ),
]


ROLES = {"system": pb.ROLE_SYSTEM, "user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT}


def conversation_of(turns: list[tuple[str, str]]) -> pb.CompleteRequest:
    request = pb.CompleteRequest()
    for kind, words in turns:
        message = request.chat.messages.add()
        match kind:
            case "call":
                message.role = pb.ROLE_ASSISTANT
                message.parts.add(reasoning=pb.Reasoning(text="a thought"))
                message.parts.add(tool_call=pb.ToolCall(id="1", name="weather", arguments=words))
            case "result" | "error":
                message.role = pb.ROLE_TOOL
                message.parts.add(
                    tool_result=pb.ToolResult(call_id="1", text=words, is_error=kind == "error")
                )
            case _:
                message.role = ROLES[kind]
                message.parts.add(text=words)
    return request


@pytest.mark.parametrize(("turns", "system", "prompt"), CHATS)
async def test_a_chat_is_written_down(turns, system, prompt):
    """One question as it is, several turns as paragraphs; the system's text apart where the command has a place for it."""
    request = conversation_of(turns)
    assert (system, prompt) == conversation(request.chat)
    expected = f"{system}\n\n{prompt}" if system else prompt
    assert expected == text(await collect(backend("stdin"), request))


HOSTILE = [
    "; rm -rf /",
    "$(touch /tmp/pwned)",
    "`id`",
    "a && b | c > d",
    "two\nlines\ttab",
    "'single' \"double\" \\",
    "{system}{model}{prompt}",
    "*",
    "--help",
    "-rf",
    "-",
    "--",
]


@pytest.mark.parametrize("words", HOSTILE)
async def test_a_prompt_is_text_and_nothing_else(words):
    """On standard input as it is; as an argument too, but that it can never be an option."""
    assert words == text(await collect(backend("stdin"), chat(words)))
    asked = backend("arguments", "{prompt}", "--prompt={prompt}", "--", "{prompt}")
    option = f" {words}" if words.startswith("-") else words
    assert [option, f"--prompt={words}", "--", words] == json.loads(text(await collect(asked, chat(words))))


async def test_the_system_text_has_its_place():
    """It is an argument like the prompt; where there is none, the argument is left out, with the option that it belongs to."""
    asked = backend("arguments", "--system", "{system}", "-s={system}", "--", "{system}", "{prompt}")
    request = conversation_of([("system", "-brief"), ("user", "Hello?")])
    expected = ["--system", " -brief", "-s=-brief", "--", "-brief", "Hello?"]
    assert expected == json.loads(text(await collect(asked, request)))
    assert ["--", "Hello?"] == json.loads(text(await collect(asked, chat())))


def test_a_text_cannot_end_the_options():
    """Only the operator's own "--" does."""
    texts = {"model": "m", "system": "--", "prompt": "-x"}
    assert ["tool", " --", " -x"] == fill(["tool", "{system}", "{prompt}"], texts)


async def test_what_no_argument_can_hold_is_refused():
    """U+0000, and more than the system takes; standard input holds both."""
    error = await failure(backend("arguments", "{prompt}"), chat("a\0b"))
    assert ("UNSUPPORTED_BY_BACKEND", "chat") == (error.reason, error.violations[0][0])
    assert (
        "PROMPT_TOO_LARGE" == (await failure(backend("arguments", "{prompt}"), chat("x" * (3 << 20)))).reason
    )
    assert "a\0b" == text(await collect(backend("stdin"), chat("a\0b")))


async def test_a_model_is_no_option():
    """Callers may name models where the operator lets them, but not so."""
    options = {"argv": [*PLAY, "arguments", "{model}"]}
    lax = BackendSettings(type="command", allow_unlisted=True, health_seconds=0, options=options)
    error = await failure(Command("c", lax).backend("--yes"))
    assert "UPSTREAM_MODEL_NOT_FOUND" == error.reason
    assert ["any"] == json.loads(text(await collect(Command("c", lax).backend("any"), chat())))


async def test_what_a_command_cannot_honour_is_refused():
    """Nothing is dropped in silence."""
    request = chat()
    request.sampling.temperature = 0.5
    request.chat.tools.add(name="weather")
    error = await failure(backend("out:hi"), request)
    assert {"sampling.temperature", "chat.tools"} == {field for field, _ in error.violations}


async def test_a_command_knows_little_of_the_server(monkeypatch, tmp_path):
    """What finding its way takes, and what the operator names."""
    monkeypatch.setenv("SERVERS_SECRET", SECRET)
    monkeypatch.setenv("TOOLS_KEY", "its own")
    more = {"pass_environment": ["TOOLS_KEY"], "environment": {"MODE": "quiet", "LANG": "C.UTF-8"}}
    known = json.loads(text(await collect(backend("environment", **more), chat())))
    expected = {name for name in KEPT_ENVIRONMENT if name in os.environ} | {"TOOLS_KEY", "MODE", "LANG"}
    # Of the last two, the one is Python's own, the other the system's.
    assert expected == set(known) - {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"}
    assert ("its own", "quiet", "C.UTF-8") == (known["TOOLS_KEY"], known["MODE"], known["LANG"])
    assert str(tmp_path) == text(await collect(backend("directory", cwd=str(tmp_path)), chat()))


# Lines of JSON.

WORDS = [
    {"when": {"kind": "word"}, "text": "words[].text", "thought": "words[].thought"},
    {"when": {"kind": "part"}, "paragraph": True, "text": "text"},
    {
        "when": {"kind": "end"},
        "ends": True,
        "answer": "all",
        "finish": "why",
        "prompt_tokens": ["usage.new", "usage.old"],
        "completion_tokens": ["usage.out"],
    },
]


def lines(
    tmp_path: pathlib.Path, *values: object, rules: object = WORDS, seed: int = 1, **more: object
) -> RemoteBackend:
    """Returns a command that prints lines; bytes as they are."""
    file = tmp_path / "lines"
    file.write_bytes(
        b"".join(
            value if isinstance(value, bytes) else msgspec.json.encode(value) + b"\n" for value in values
        )
    )
    return backend(f"lines:{file}:{seed}", format="json-lines", lines=rules, **more)


END = {"kind": "end", "why": "stop", "usage": {"new": 2, "old": 3, "out": 4}}


@pytest.mark.parametrize("seed", range(4))
async def test_lines_are_read_as_the_rules_say(tmp_path, seed):
    """At any flush: texts in lists, paragraphs, and the usage added up; chatter and lines of other kinds are skipped."""
    asked = lines(
        tmp_path,
        b"Warning: chatter\r\n\n",
        {"kind": "word", "words": [{"text": "Hel"}, {"thought": "Hm"}, {"text": "lö"}, 7, None]},
        {"kind": "word", "words": "none"},
        {"kind": "other", "text": "skipped"},
        {"kind": "part", "text": "World"},
        {"kind": "part", "text": None},
        {"kind": "word", "words": [{"text": "!"}]},
        END,
        {"kind": "word", "words": [{"text": "after the end"}]},
        seed=seed,
    )
    answer = await collect(asked, chat())
    assert ("Hellö\n\nWorld\n\n!", "Hm") == (text(answer), thought(answer))
    completion = answer.completion
    assert (pb.FINISH_REASON_STOP, "stop") == (completion.finish_reason, completion.raw_finish_reason)
    assert (5, 4) == (completion.usage.prompt_tokens, completion.usage.completion_tokens)


@pytest.mark.parametrize(
    ("why", "expected"),
    [
        ("max_tokens", pb.FINISH_REASON_LENGTH),
        ("END_TURN", pb.FINISH_REASON_STOP),
        ("refusal", pb.FINISH_REASON_CONTENT_FILTER),
        ("tired", pb.FINISH_REASON_OTHER),
        (None, pb.FINISH_REASON_STOP),
    ],
)
async def test_a_command_says_why_its_answer_ended(tmp_path, why, expected):
    """In its own words, which are told beside ours."""
    answer = await collect(lines(tmp_path, {**END, "why": why}), chat())
    assert (expected, why or "") == (answer.completion.finish_reason, answer.completion.raw_finish_reason)


async def test_the_whole_answer_may_come_at_the_end(tmp_path):
    """Only where no text came before it."""
    assert "all of it" == text(await collect(lines(tmp_path, {**END, "all": "all of it"}), chat()))
    word = {"kind": "word", "words": [{"text": "word"}]}
    assert "word" == text(await collect(lines(tmp_path, word, {**END, "all": "word"}), chat()))


async def test_counts_that_are_none_are_none(tmp_path):
    """Whatever a tool writes there, the answer is not lost for it."""
    usage = {"new": -5, "old": 1 << 40, "out": "many"}
    answer = await collect(lines(tmp_path, {**END, "usage": usage}), chat())
    assert ((1 << 32) - 1, 0) == (
        answer.completion.usage.prompt_tokens,
        answer.completion.usage.completion_tokens,
    )


async def test_without_a_line_for_it_the_end_of_the_command_is_the_end(tmp_path):
    """As of plain text."""
    word = {"kind": "word", "words": [{"text": "word"}]}
    assert "word" == text(await collect(lines(tmp_path, word, rules=WORDS[:1]), chat()))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([{"kind": "word", "words": [{"text": "word"}]}], "UPSTREAM_TRUNCATED"),
        ([b'{"kind": "end"'], "UPSTREAM_PROTOCOL_ERROR"),
        ([b'{"kind": \xff}\n', END], "UPSTREAM_PROTOCOL_ERROR"),
        ([b'{"kind": ' + b"[" * 100_000 + b"\n", END], "UPSTREAM_PROTOCOL_ERROR"),
        ([b'{"kind": "\\ud83d"}\n', END], "UPSTREAM_PROTOCOL_ERROR"),
        ([b"{" + b" " * 200_000], "UPSTREAM_PROTOCOL_ERROR"),
        ([b"{}\n" * 10_001, END], "UPSTREAM_STALLED"),
    ],
)
async def test_lines_that_break_off_or_cannot_be_read(tmp_path, values, reason):
    """Without the line that says so there is no end, and nothing is guessed."""
    assert reason == (await failure(lines(tmp_path, *values, max_output_bytes=150_000))).reason


async def test_an_end_that_is_told_does_not_excuse_a_failure(tmp_path):
    """The exit code counts too."""
    file = tmp_path / "lines"
    file.write_bytes(msgspec.json.encode(END) + b"\n")
    error = await failure(backend(f"lines:{file}:1", "exit:1", lines=WORDS))
    assert "UPSTREAM_UNAVAILABLE" == error.reason


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("authentication_failed", "UPSTREAM_AUTH"),
        ("billing_error", "UPSTREAM_AUTH"),
        ("rate_limit", "UPSTREAM_RATE_LIMITED"),
        ("invalid_request", "UPSTREAM_REJECTED"),
        ("server_error", "UPSTREAM_UNAVAILABLE"),
        (SECRET, "UPSTREAM_UNAVAILABLE"),
        (None, "UPSTREAM_UNAVAILABLE"),
    ],
)
async def test_a_failure_has_the_reason_of_its_word(tmp_path, word, reason):
    """And none of the tool's own text, not even the word."""
    rules = [{"when": {"kind": "bad"}, "error": "why"}, {"when": {"kind": "end"}, "fails": True}]
    error = await failure(lines(tmp_path, {"kind": "bad", "why": word}, END, rules=rules))
    assert reason == error.reason
    assert SECRET not in str(vars(error))


# The tools that are known.


@pytest.fixture
def tools(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory with a stand-in for each tool, which takes its documented options and no others."""
    for name in TEMPLATES:
        tool = tmp_path / name
        tool.write_text(f"#!{sys.executable} -IS\n{(COMMANDS / f'{name}.py').read_text()}")
        tool.chmod(0o755)
    return tmp_path


def known(name: str, tools: pathlib.Path, **more: object) -> RemoteBackend:
    return backend(template=name, environment={"PATH": str(tools), "LC_ALL": "C.UTF-8"}, **more)


LOOKED = "I will look.\n\n"
SAID = {
    "claude": (LOOKED + "m|{system}|{prompt}", "Let me see.\n\n[tool: Bash]", (11, 6, 7)),
    "codex": (
        "I looked.\n\nm|{prompt}",
        "**Searching**\n\n[tool: command_execution]\n\n**Checking**",
        (11, 3, 7),
    ),
    "gemini": (LOOKED + "m|{prompt}", "[tool: read_file]", (11, 3, 7)),
    "ollama": ("m|{prompt}", "", (0, 0, 0)),
    "llm": ("m|{system}|{prompt}", "", (0, 0, 0)),
}


@pytest.mark.parametrize("question", ["Wörter 🙂 '$HOME'", "-x", "two\nlines"])
@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("name", TEMPLATES)
async def test_a_known_tool_is_called_and_read_as_it_is_documented(tools, name, system, question):
    """Text, thoughts, the names of its tools and the usage; neither another agent's words nor the results of its tools."""
    turns = [("system", system), ("user", question)] if system else [("user", question)]
    answer = await collect(known(name, tools), conversation_of(turns))
    said, thoughts, usage = SAID[name]
    if "{system}" in said:
        expected = said.format(system=system or "none", prompt=question)
    else:
        expected = said.format(prompt=f"{system}\n\n{question}" if system else question)
    assert (expected, thoughts) == (text(answer), thought(answer))
    told = answer.completion.usage
    assert usage == (told.prompt_tokens, told.cached_prompt_tokens, told.completion_tokens)
    assert pb.FINISH_REASON_STOP == answer.completion.finish_reason
    assert not [part for part in answer.message.parts if part.HasField("tool_call")]


@pytest.mark.parametrize("name", TEMPLATES)
async def test_a_known_tool_fails_without_a_word_of_its_own(tools, name):
    """Its message is no text of the answer, and no part of the failure."""
    error = await failure(known(name, tools), chat("fail"))
    assert {"claude": "UPSTREAM_AUTH", "gemini": "UPSTREAM_AUTH"}.get(
        name, "UPSTREAM_UNAVAILABLE"
    ) == error.reason
    assert 0 == int(error.metadata.get("tokensEmitted", 0))
    assert SECRET not in str(vars(error))


async def test_an_answer_without_events_is_told_at_its_end(tools):
    """Such as that of a command of the tool's own."""
    assert "A command's answer." == text(await collect(known("claude", tools), chat("/help")))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if template.lines])
async def test_the_lines_of_a_known_tool_at_odd_flushes(tools, tmp_path, name, seed):
    """Where the pieces begin and end changes nothing."""
    argv = [
        argument.replace("{model}", "m") for argument in TEMPLATES[name].argv if "{system}" not in argument
    ]
    run = await asyncio.create_subprocess_exec(
        tools / argv[0], *argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    output, _ = await run.communicate("Wörter".encode())
    (tmp_path / "lines").write_bytes(output)
    answer = await collect(backend(f"lines:{tmp_path}/lines:{seed}", template=name), chat())
    said, thoughts, _ = SAID[name]
    assert (said.format(system="none", prompt="Wörter"), thoughts) == (text(answer), thought(answer))


# Its configuration, and the server around it.


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "options.argv: must name a command"),
        ({"options": {"template": "cluade"}}, "did you mean claude?"),
        ({"options": {"argv": ["{model}"]}}, "cannot be left to callers"),
        ({"options": {"argv": ["/bin/sh", "-c", "echo {prompt}"]}}, "a shell would run what callers write"),
        ({"options": {"argv": ["bash", "-lc", "echo {system}"]}}, "a shell would run what callers write"),
        ({"options": {"argv": ["a\0"]}}, "U+0000"),
        ({"options": {"argv": ["tool"]}, "models": ["a", "b"]}, "it needs {model}"),
        ({"options": {"argv": ["tool"]}, "allow_unlisted": True}, "it needs {model}"),
        ({"options": {"argv": ["tool"], "format": "json-lines"}}, "options.lines: must be set"),
        ({"options": {"argv": ["tool"], "format": "json"}}, "options.format"),
        ({"options": {"argv": ["tool"], "format": "text", "lines": WORDS}}, "plain text has none"),
        ({"options": {"argv": ["tool"], "lines": [{"wen": {}}]}}, "options.lines"),
        ({"options": {"argv": ["tool"], "environment": {"A=B": ""}}}, "'A=B'"),
        ({"options": {"argv": ["tool"], "pass_environment": ["NO_SUCH_NAME"]}}, "has no NO_SUCH_NAME"),
        ({"options": {"argv": ["tool"], "max_processes": 0}}, "options.max_processes"),
        ({"options": {"argv": ["tool"], "stop_second": 1}}, "did you mean backends.c.options.stop_seconds?"),
        ({"options": {"argv": ["tool"]}, "base_url": "http://a"}, "base_url: a command has none"),
        ({"options": {"argv": ["tool"]}, "api_key_env": "KEY"}, "pass_environment"),
    ],
)
def test_a_configuration_that_cannot_be_is_told(more, words):
    """Before anything is served, and so that it can be mended."""
    with pytest.raises(ConfigError) as caught:
        Command("c", BackendSettings(type="command", **{"models": [MODEL], **more}))
    assert words in str(caught.value)


async def test_a_shell_may_take_a_prompt_behind_its_program():
    """There it is an argument, and never read as a program."""
    asked = backend(argv=["/bin/sh", "-c", 'printf "%s" "$1"', "sh", "{prompt}"])
    assert "$(id)" == text(await collect(asked, chat("$(id)")))


@pytest.mark.parametrize("name", TEMPLATES)
async def test_a_template_says_what_it_can_do(name):
    """Prompts and chats; thoughts where its lines have some. A command of the operator's own outranks the template's."""
    told = command(template=name).capabilities
    assert (True, True, bool(TEMPLATES[name].lines)) == (told.prompt, told.chat, told.reasoning)
    assert TEMPLATES[name].display_name == command(template=name).display_name
    assert not command(template=name, format="text").capabilities.reasoning
    assert "hi" == text(await collect(backend("out:hi", template=name, format="text"), chat()))


async def test_through_a_server(tools):
    """A stream over gRPC; a caller that goes away ends the command."""
    backends = {
        "tool": settings(template="claude", environment={"PATH": str(tools)}),
        "slow": settings("pid", "wait"),
    }
    async with running(backends=backends, scripted=False) as (_, client):
        response = await client.complete(prompt="Hello?", model=f"tool/{MODEL}")
        assert LOOKED + "m|none|Hello?" == text(response)
        assert ("tool", f"tool/{MODEL}") == (response.started.backend, response.started.model)
        async with client.stream(prompt="Hello?", model=f"slow/{MODEL}") as stream:
            pid = int(await anext(aiter(stream.text())))
        await until_dead(pid)


async def test_a_missing_command_is_told_at_the_start():
    """NOT_SERVING with the reason, and without the path; a request is told the same."""
    missing = BackendSettings(type="command", models=[MODEL], options={"argv": ["/no/such/command"]})
    async with running(backends={"gone": missing}, scripted=False) as (server, client):
        changes = server.registry.changes
        while True:
            revision = changes.revision
            (told,) = await client.list_backends()
            if told.health == pb.BACKEND_HEALTH_NOT_SERVING:
                break
            await changes.after(revision)
        assert error_reason_pb2.ERROR_REASON_UPSTREAM_UNAVAILABLE == told.failure.reason
        with pytest.raises(InferwireError) as caught:
            await client.complete(prompt="Hello?", model=f"gone/{MODEL}")
        assert (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE") == (
            caught.value.code,
            caught.value.reason,
        )
        assert "/no/such" not in str(told) + str(caught.value)
