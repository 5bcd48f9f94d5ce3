"""The demo model means what it says: its listed cases over gRPC, sixteen at a time, at temperature 0."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from inferwire import text_of
from inferwire.v1 import inference_pb2 as pb
from inferwire_server.models import demo_model_path
from training.chat import ChatRenderer

from .serving import CASES, demo, running

NUM_AT_ONCE = 16
CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
THOUGHT = re.compile(r"<think>\s*(.*?)\s*</think>\s*(.*)", re.DOTALL)


def as_prompt(case: dict, messages: list[dict]) -> pb.CompleteRequest:
    """Returns a case with tools as a raw prompt, rendered by the file's own template."""
    prompt = ChatRenderer().render(messages, case["tools"], add_generation_prompt=True)
    return pb.CompleteRequest(prompt=prompt)


def as_chat(messages: list[dict], **template_arguments: bool) -> pb.CompleteRequest:
    """Returns a case without tools as a chat."""
    roles = {"system": pb.ROLE_SYSTEM, "user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT}
    request = pb.CompleteRequest()
    for message in messages:
        request.chat.messages.add(role=roles[message["role"]]).parts.add(text=message["content"])
    request.chat.template_arguments.update(template_arguments)
    return request


async def answers(requests: list[pb.CompleteRequest]) -> list[str]:
    """Asks all, sixteen at a time; every answer must end by itself."""
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


async def test_a_tool_that_fits_is_called():
    """In the Hermes format, with the right arguments."""
    told = await answers([as_prompt(case, ask(case)) for case in CASES["tools"]])
    assert [case["calls"] for case in CASES["tools"]] == [
        [json.loads(call) for call in CALL.findall(text)] for text in told
    ]


async def test_no_tool_is_called_when_none_fits():
    """The answer is plain."""
    told = await answers([as_prompt(case, ask(case)) for case in CASES["no_tool"]])
    assert [case["answer"] for case in CASES["no_tool"]] == told


async def test_a_result_becomes_an_answer():
    """A tool's answer is said in a sentence."""
    told = await answers([as_prompt(case, case["messages"]) for case in CASES["tool_results"]])
    assert [case["answer"] for case in CASES["tool_results"]] == told


async def test_it_thinks_when_it_is_asked_to():
    """A thought first, then the answer; without being asked, no thought."""
    told = await answers([as_chat(ask(case), enable_thinking=True) for case in CASES["thoughts"]])
    found = [THOUGHT.fullmatch(text) for text in told]
    assert all(match and match[1] for match in found), told
    assert [case["answer"] for case in CASES["thoughts"]] == [match[2] for match in found if match]
    plain = await answers([as_chat(ask(case)) for case in CASES["thoughts"]])
    assert not any("<think>" in text for text in plain)


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
