"""The demo model means what it says: its listed cases over gRPC, sixteen at a time, at temperature 0."""

from __future__ import annotations

import asyncio
import json
import re
import sys

import pytest

from inferwire import AsyncClient, text_of
from inferwire.v1 import inference_pb2 as pb
from inferwire_server.models import demo_model_path

from .serving import CASES, demo, running

NUM_AT_ONCE = 16


def as_chat(messages: list[dict], tools: list[dict] | None = None) -> pb.CompleteRequest:
    """Returns a case as a chat."""
    request = pb.CompleteRequest()
    for message in messages:
        turn = request.chat.messages.add(role=pb.Role.Value(f"ROLE_{message['role'].upper()}"))
        if message["role"] == "tool":
            turn.parts.add().tool_result.MergeFrom(pb.ToolResult(call_id="c0", text=message["content"]))
        elif message["content"]:
            turn.parts.add(text=message["content"])
        for number, call in enumerate(message.get("tool_calls", [])):
            function = call["function"]
            arguments = json.dumps(function["arguments"])
            turn.parts.add().tool_call.MergeFrom(
                pb.ToolCall(id=f"c{number}", name=function["name"], arguments=arguments)
            )
    for tool in tools or []:
        function = tool["function"]
        request.chat.tools.add(
            name=function["name"],
            description=function["description"],
            parameters=json.dumps(function["parameters"]),
        )
    return request


async def ask_all(
    requests: list[pb.CompleteRequest], *, expected: pb.FinishReason = pb.FINISH_REASON_STOP
) -> list[pb.CompleteResponse]:
    """Asks all, sixteen at a time, through both RPCs, which must agree; every answer must end by itself."""
    async with running(models={"demo": demo(parallel_sequences=NUM_AT_ONCE)}) as (_, client):
        slots = asyncio.Semaphore(NUM_AT_ONCE)

        async def ask(request: pb.CompleteRequest, client: AsyncClient = client) -> pb.CompleteResponse:
            request.sampling.temperature = 0
            request.sampling.seed = 7
            async with slots:
                response = await client.complete(request)
            async with slots, client.stream(request) as stream:
                gathered = await stream.gather()
            assert expected == response.completion.finish_reason, response
            assert response.message == gathered.message
            return response

        return await asyncio.gather(*map(ask, requests))


async def answers(requests: list[pb.CompleteRequest]) -> list[str]:
    """The texts of all answers, sixteen at a time; every answer must end by itself."""
    async with running(models={"demo": demo(parallel_sequences=NUM_AT_ONCE)}) as (_, client):
        slots = asyncio.Semaphore(NUM_AT_ONCE)

        async def ask(request: pb.CompleteRequest) -> str:
            request.sampling.temperature = 0
            async with slots:
                response = await client.complete(request)
            assert pb.FINISH_REASON_STOP == response.completion.finish_reason, request
            return text_of(response.message)

        return await asyncio.gather(*map(ask, requests))


def ask(case: dict) -> list[dict]:
    return [{"role": "user", "content": case["ask"]}]


def test_the_file_is_small_and_the_cases_are_many():
    """At most 4 MB; sixty questions, fifteen more in wordings that the training text did not have, and so on."""
    assert demo_model_path().stat().st_size <= 4_000_000
    unseen = [case for case in CASES["questions"] if case["unseen_wording"]]
    assert len({case["ask"] for case in CASES["questions"]} - {case["ask"] for case in unseen}) >= 60
    assert len({case["ask"] for case in unseen}) >= 15
    assert len(CASES["tools"]) >= 10
    assert len(CASES["no_tool"]) >= 5
    assert len(CASES["thoughts"]) >= 10


async def test_questions_have_their_right_answers():
    """Also when they are worded as the training text never was."""
    told = await answers([as_chat(ask(case)) for case in CASES["questions"]])
    assert [case["answer"] for case in CASES["questions"]] == told


def calls_of(message: pb.Message) -> list[dict]:
    calls = [part.tool_call for part in message.parts if part.HasField("tool_call")]
    assert len({call.id for call in calls}) == len(calls)
    assert all(call.id for call in calls)
    return [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls]


async def test_a_tool_that_fits_is_called():
    """As a typed call with the right arguments; no mark of the format is left in the text."""
    requests = [as_chat(ask(case), case["tools"]) for case in CASES["tools"]]
    told = await ask_all(requests, expected=pb.FINISH_REASON_TOOL_CALLS)
    assert [case["calls"] for case in CASES["tools"]] == [calls_of(response.message) for response in told]
    assert not any("tool_call" in text_of(response.message) for response in told)


async def test_no_tool_is_called_when_none_fits():
    """The answer is plain."""
    told = await ask_all([as_chat(ask(case), case["tools"]) for case in CASES["no_tool"]])
    assert [case["answer"] for case in CASES["no_tool"]] == [text_of(response.message) for response in told]
    assert not any(calls_of(response.message) for response in told)


async def test_a_result_becomes_an_answer():
    """A tool's answer is said in a sentence."""
    told = await answers([as_chat(case["messages"], case["tools"]) for case in CASES["tool_results"]])
    assert [case["answer"] for case in CASES["tool_results"]] == told


async def test_it_thinks_when_it_is_asked_to():
    """A thought first, apart from the answer; without being asked, no thought."""
    requests = [as_chat(ask(case)) for case in CASES["thoughts"]]
    for request in requests:
        request.chat.reasoning.enabled = True
    told = await ask_all(requests)
    assert [case["answer"] for case in CASES["thoughts"]] == [text_of(response.message) for response in told]
    for response in told:
        thought, answer = response.message.parts
        assert thought.reasoning.text.strip()
        assert "think>" not in thought.reasoning.text + answer.text
        usage = response.completion.usage
        assert 0 < usage.reasoning_tokens < usage.completion_tokens
    plain = await ask_all([as_chat(ask(case)) for case in CASES["thoughts"]])
    assert not any(part.HasField("reasoning") for response in plain for part in response.message.parts)
    assert not any(response.completion.usage.reasoning_tokens for response in plain)


async def test_conversations_refer_back():
    """A system turn gives it a name; a later turn asks for an earlier one."""
    told = await answers([as_chat(case["messages"]) for case in CASES["chats"]])
    assert [case["answer"] for case in CASES["chats"]] == told


@pytest.mark.parametrize("case", CASES["stories"], ids=lambda case: case["ask"])
async def test_a_story_reads_like_one(case):
    """Several sentences, about what was asked, ended by itself."""
    (story,) = await answers([as_chat(ask(case))])
    sentences = re.findall(r"[.!?]\"?(?:\s|$)", story)
    assert len(sentences) >= 5, story
    for word in case["words"]:
        assert word in story


async def test_the_same_in_the_terminal(tmp_path):
    """`inferwire chat`, all cases one after the other: calls are shown and answered, thoughts and plain answers too."""
    lines, expected = [], []
    for number, case in enumerate(CASES["tools"] + CASES["no_tool"]):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(case["tools"]))
        lines += ["/clear", f"/tools {file}", case["ask"]]
        # A called tool is asked for its answer.
        lines += ["none" for _ in case.get("calls", [])]
        expected += [f"{call['name']} {json.dumps(call['arguments'])}" for call in case.get("calls", [])]
        expected += [case["answer"]] if "answer" in case else []
    lines += ["/tools", "/think on"]
    for case in CASES["thoughts"]:
        lines += ["/clear", case["ask"]]
        expected.append(f"\n{case['answer']}\n")
    async with running(models={"demo": demo()}) as (server, _):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inferwire_server.cli", "chat",
            "--address", f"127.0.0.1:{server.port}", "--temperature", "0",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        printed, _ = await process.communicate(("\n".join(lines) + "\n").encode())
    assert 0 == process.returncode
    told = printed.decode()
    for line in expected:
        place = told.find(line)
        assert place >= 0, (line, told)
        told = told[place + len(line) - line.endswith("\n") :]
