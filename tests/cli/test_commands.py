"""The commands against a real server: what is printed where, and the exit codes that scripts rely on."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from inferwire.chat import system, tool_result, user
from inferwire.v1 import inference_pb2 as inference
from inferwire.v1 import models_pb2 as models
from inferwire.v1.error_reason_pb2 import ErrorReason
from inferwire_server.cli import COMMANDS, main
from inferwire_server.cli.connection import HINTS
from inferwire_server.cli.terminal import Seconds, size, visible
from tests.cli.conftest import Run
from tests.client.scripted import (
    Refusal,
    ScriptedServer,
    answer,
    completion,
    reasoning,
    started,
    text,
)

READY = models.ModelState.MODEL_STATE_READY

# Every command that calls a server, in its shortest form.
CALLS = [
    ["complete", "Hi"],
    ["complete", "--no-stream", "Hi"],
    ["models"],
    ["models", "--watch"],
    ["load", "demo", "demo.gguf"],
    ["unload", "demo"],
    ["tokens", "Hi"],
    ["health"],
    ["health", "--service", "liveness"],
    ["top", "--once"],
]


class TestHelp:
    def test_names_every_command_and_exit_code(self) -> None:
        """The first help says what there is and what the exit codes mean."""
        result = CliRunner().invoke(main, ["--help"], catch_exceptions=False)
        assert 0 == result.exit_code
        for name, summary in COMMANDS.items():
            assert name in result.output
            assert summary in result.output
        codes = result.output.split("Exit codes:")[1].splitlines()[1:]
        assert ["0", "1", "2", "3", "130"] == [line.split()[0] for line in codes]

    def test_is_quick(self) -> None:
        """The first help imports neither grpc nor rich."""
        code = (
            "import sys; from inferwire_server.cli import main\n"
            "main(['--help'], standalone_mode=False)\n"
            "sys.exit(bool({'grpc', 'rich', 'google.protobuf'} & set(sys.modules)))"
        )
        assert 0 == subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode

    @pytest.mark.parametrize("name", [name for name in COMMANDS if name != "serve"])
    def test_every_command_explains_itself(self, name: str) -> None:
        """Each option of each command has a help text."""
        command = main.get_command(
            main.make_context("inferwire", [name, "--help"], resilient_parsing=True), name
        )
        assert command is not None
        assert command.help
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert getattr(parameter, "help", None), parameter.name

    @pytest.mark.parametrize(
        "arguments",
        [
            ["nope"],
            ["chat", "--nope"],
            ["load"],
            ["complete", "--temperature", "-1", "x"],
            ["unload", "a", "b"],
        ],
    )
    def test_wrong_usage_is_2(self, arguments: list[str]) -> None:
        """A wrong command line is exit code 2, before any server is asked."""
        assert 2 == CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code


class TestErrors:
    @pytest.mark.parametrize("arguments", CALLS, ids=" ".join)
    def test_no_server_is_3(self, run: Run, arguments: list[str]) -> None:
        """Every command says in one breath that nobody is there, and where it looked."""
        result = run(*arguments, env={"INFERWIRE_ADDRESS": "127.0.0.1:1"})
        assert 3 == result.exit_code
        assert "" == result.stdout
        assert "no inferwire server answers at 127.0.0.1:1" in result.stderr
        assert "inferwire serve" in result.stderr

    def test_a_refusal_is_1(self, server: ScriptedServer, run: Run) -> None:
        """Reason, message, violations, when to ask again, and what to do: a few lines on stderr."""
        server.answers["Complete"] = Refusal(
            grpc.StatusCode.FAILED_PRECONDITION,
            "demo is not loaded",
            "MODEL_NOT_LOADED",
            metadata={"errorId": "0b1f7a52c3d94e86"},
            violations=(("model", "is not loaded"),),
            retry_delay=1.5,
        )
        result = run("complete", "--no-stream", "Hi")
        assert 1 == result.exit_code
        assert "" == result.stdout
        assert [
            "Error: MODEL_NOT_LOADED: demo is not loaded",
            "  model: is not loaded",
            "  Try again in 1.5 s.",
            "  The server's log says more under the id 0b1f7a52c3d94e86.",
            "  Load it first: inferwire load NAME PATH",
        ] == result.stderr.splitlines()

    def test_tls_where_there_is_none(self, server: ScriptedServer) -> None:
        """A server without TLS cannot be called with it; the error says what to do, and the library says nothing."""
        code = "from inferwire_server.cli import main; main()"
        arguments = ["models", "--tls", "--address", server.address]
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert 3 == result.returncode
        assert result.stderr.startswith("Error: no inferwire server answers at ")
        assert 3 == len(result.stderr.splitlines())
        assert "--plaintext" in result.stderr

    def test_hints_are_of_known_reasons(self) -> None:
        """A hint for a reason that the contract does not have would never be read."""
        assert {f"ERROR_REASON_{reason}" for reason in HINTS} <= set(ErrorReason.keys())

    def test_a_failure_after_text(self, server: ScriptedServer, run: Run) -> None:
        """What came before the failure is on stdout; the failure is on stderr and in the exit code."""
        server.streams = [[started(), text("a"), Refusal(grpc.StatusCode.ABORTED, "gone", "ENGINE_CRASHED")]]
        result = run("complete", "Hi")
        assert (1, "a") == (result.exit_code, result.stdout)
        assert "ENGINE_CRASHED" in result.stderr

    def test_the_server_does_not_steer_the_terminal(self, server: ScriptedServer, run: Run) -> None:
        """Escape sequences in a message are shown, not obeyed."""
        server.answers["Unload"] = Refusal(grpc.StatusCode.INTERNAL, "a\x1b[2Jb", "INTERNAL")
        assert "\x1b" not in run("unload", "demo").stderr
        assert "a\N{REPLACEMENT CHARACTER}[2Jb\tc\n" == visible("a\x1b[2Jb\tc\n")

    def test_carries_the_token(self, server: ScriptedServer, run: Run) -> None:
        """The key comes from the option or the environment."""
        run("models", env={"INFERWIRE_TOKEN": "secret"})
        assert "Bearer secret" == server.metadata["authorization"]
        run("models", "--token", "other", env={"INFERWIRE_TOKEN": "secret"})
        assert "Bearer other" == server.metadata["authorization"]


class TestComplete:
    def test_streams_the_text(self, server: ScriptedServer, run: Run) -> None:
        """The answer is stdout, thoughts are not; a newline ends it."""
        server.streams = [[started(), reasoning("hm"), text("Hel"), text("lo"), completion()]]
        result = run("complete", "Hi", "--max-tokens", "0", "--seed", "0", "--model", "demo", "--stop", "x")
        assert (0, "Hello\n", "") == (result.exit_code, result.stdout, result.stderr)
        expected = inference.CompleteRequest(
            model="demo",
            prompt="Hi",
            sampling=inference.Sampling(seed=0),
            stopping=inference.Stopping(max_tokens=0, stop=["x"]),
        )
        assert [expected] == server.requests_of("StreamComplete")

    @pytest.mark.parametrize("arguments", [["-"], []])
    def test_reads_a_pipe(self, server: ScriptedServer, run: Run, arguments: list[str]) -> None:
        """Without PROMPT, or with "-", the prompt is standard input, to the last byte."""
        server.streams = [answer("b")]
        assert 0 == run("complete", *arguments, input="Ü\n").exit_code
        assert [inference.CompleteRequest(prompt="Ü\n")] == server.requests_of("StreamComplete")

    def test_input_that_is_no_text(self, server: ScriptedServer, run: Run) -> None:
        """Bytes that are not UTF-8 are wrong usage, not a traceback."""
        result = run("complete", input=b"\xff")
        assert 2 == result.exit_code
        assert "UTF-8" in result.stderr
        assert [] == server.requests

    def test_chat(self, server: ScriptedServer, run: Run) -> None:
        """--chat sends the text as a person's turn."""
        server.streams = [answer("b")]
        run("complete", "--chat", "Hi")
        expected = inference.CompleteRequest(chat=inference.Chat(messages=[user("Hi")]))
        assert [expected] == server.requests_of("StreamComplete")

    def test_json_is_the_response(self, server: ScriptedServer, run: Run) -> None:
        """--json prints one document with the contract's names."""
        part = inference.Part(text="Hello")
        server.answers["Complete"] = inference.CompleteResponse(
            message=inference.Message(parts=[part]), completion=completion().completion
        )
        document = json.loads(run("complete", "--json", "Hi").stdout)
        assert "Hello" == document["message"]["parts"][0]["text"]
        assert "FINISH_REASON_STOP" == document["completion"]["finish_reason"]

    def test_says_that_the_answer_was_cut(self, server: ScriptedServer, run: Run) -> None:
        """An answer that the model did not end itself is noted on stderr; the exit code is 0."""
        server.streams = [[started(), text("a"), completion(inference.FinishReason.FINISH_REASON_LENGTH)]]
        result = run("complete", "Hi")
        assert (0, "a\n", "(ended: length)\n") == (result.exit_code, result.stdout, result.stderr)

    def test_a_truncated_stream_is_a_failure(self, server: ScriptedServer, run: Run) -> None:
        """An answer that is not whole is never exit code 0."""
        server.streams = [[started(), text("a")]]
        result = run("complete", "Hi")
        assert 1 == result.exit_code
        assert "STREAM_TRUNCATED" in result.stderr


class TestChatThroughAPipe:
    def test_remembers_the_conversation(self, server: ScriptedServer, run: Run) -> None:
        """Each turn is sent with all turns before it, the answers as they came."""
        server.streams = [[started(), reasoning("hm"), text("A"), completion()], answer("B")]
        result = run("chat", "--system", "Be brief.", "--temperature", "0", input="one\n\ntwo\n")
        assert (0, "hm\nA\nB\n") == (result.exit_code, result.stdout)
        [_, second] = server.requests_of("StreamComplete")
        assert isinstance(second, inference.CompleteRequest)
        first_answer = inference.Message(
            role=inference.Role.ROLE_ASSISTANT,
            parts=[
                inference.Part(reasoning=inference.Reasoning(text="hm")),
                inference.Part(text="A"),
            ],
        )
        assert [system("Be brief."), user("one"), first_answer, user("two")] == list(second.chat.messages)
        assert second.sampling.HasField("temperature")

    def test_commands(self, server: ScriptedServer, run: Run) -> None:
        """/clear forgets all but the instructions, /quit leaves, an unknown command is not sent."""
        server.streams = [answer("A")]
        result = run("chat", "--system", "S", input="one\n/help\n/nope\n/clear\ntwo\n/quit\nthree\n")
        assert 0 == result.exit_code
        assert "/clear" in result.stdout
        assert "/nope" in result.stderr
        sent = [
            [message.parts[0].text for message in request.chat.messages]
            for request in server.requests_of("StreamComplete")
            if isinstance(request, inference.CompleteRequest)
        ]
        assert [["S", "one"], ["S", "two"]] == sent

    def test_tools(self, server: ScriptedServer, run: Run, tmp_path: Path) -> None:
        """A call is shown, its answer asked for, and both go back with the next turn; /tools alone takes the tools away."""
        file = tmp_path / "tools.json"
        parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
        function = {"name": "weather", "description": "Tells it.", "parameters": parameters}
        file.write_text(json.dumps([{"type": "function", "function": function}, {"name": "now"}]))
        call = inference.ToolCallDelta(id="c1", name="weather", arguments='{"city": "Bern"}')
        server.streams = [
            [started(), text("Well."), inference.StreamCompleteResponse(tool_call=call), completion()],
            answer("It rains."),
        ]
        result = run("chat", input=f"/tools {file}\nweather?\nrain\n/tools\nthanks\n")
        assert 0 == result.exit_code
        assert 'Well.\nweather {"city": "Bern"}\nIt rains.\n' in result.stdout
        first, second, third = [request.chat for request in server.requests_of("StreamComplete")]
        assert ["weather", "now"] == [tool.name for tool in first.tools]
        assert ("Tells it.", parameters) == (
            first.tools[0].description,
            json.loads(first.tools[0].parameters),
        )
        assert "" == first.tools[1].parameters
        assert tool_result("c1", "rain") == second.messages[-1]
        assert "c1" == second.messages[-2].parts[1].tool_call.id
        assert (2, 0) == (len(second.tools), len(third.tools))

    @pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"description": "no name"}]', '"text"', None])
    def test_a_file_without_tools(
        self, server: ScriptedServer, run: Run, tmp_path: Path, content: str | None
    ) -> None:
        """It is said, and the conversation goes on without tools."""
        file = tmp_path / "tools.json"
        if content is not None:
            file.write_text(content)
        server.streams = [answer("A")]
        result = run("chat", input=f"/tools {file}\none\n")
        assert 0 == result.exit_code
        assert ("cannot be read" if content is None else "no list of tools") in result.stderr
        [request] = server.requests_of("StreamComplete")
        assert 0 == len(request.chat.tools)

    def test_thoughts(self, server: ScriptedServer, run: Run) -> None:
        """On, off, or the model's own habit."""
        server.streams = [answer("A")]
        assert 0 == run("chat", input="/think on\na\n/think off\nb\n/think maybe\n/think\nc\n").exit_code
        on, off, unset = [request.chat for request in server.requests_of("StreamComplete")]
        assert (True, False) == (on.reasoning.enabled, off.reasoning.enabled)
        assert off.reasoning.HasField("enabled")
        assert not unset.HasField("reasoning")

    def test_a_failure_ends_a_pipe(self, server: ScriptedServer, run: Run) -> None:
        """Nobody reads the error of a script's turn, so it is the exit code."""
        server.streams = [[Refusal(grpc.StatusCode.NOT_FOUND, "none", "MODEL_NOT_FOUND")]]
        result = run("chat", input="one\ntwo\n")
        assert 1 == result.exit_code
        assert 1 == len(server.requests)


class TestLoad:
    def test_loads(self, server: ScriptedServer, run: Run) -> None:
        """The options become the request; the last line says what is there now."""
        model = models.Model(name="demo", quantization="Q8_0", size_bytes=1536)
        server.loads = [
            [
                models.StreamLoadResponse(progress=models.LoadProgress(fraction=0.5)),
                models.StreamLoadResponse(loaded=models.LoadResponse(model=model)),
            ]
        ]
        options = "--context-length 64 --parallel 2 --gpu-layers 0 --threads 1 --keep-alive 10m --replace"
        result = run("load", "demo", "demo.gguf", *options.split())
        assert (0, "demo is loaded (Q8_0, 1.5 KiB).\n") == (result.exit_code, result.stdout)
        expected = models.LoadRequest(
            model="demo",
            source=models.ModelSource(local=models.LocalSource(path="demo.gguf")),
            config=models.LoadConfig(context_length=64, parallel_sequences=2, gpu_layers=0, threads=1),
            replace=True,
        )
        expected.keep_alive.FromSeconds(600)
        assert [expected] == server.requests_of("StreamLoad")

    def test_loads_from_a_remote_backend(self, server: ScriptedServer, run: Run) -> None:
        """With --backend the second name is the model's there; without that name there is nothing to load."""
        loaded = models.LoadResponse(model=models.Model(name="q"))
        server.loads = [[models.StreamLoadResponse(loaded=loaded)]]
        assert 0 == run("load", "q", "qwen2.5:0.5b", "--backend", "ollama").exit_code
        remote = models.RemoteSource(backend="ollama", model="qwen2.5:0.5b")
        expected = models.LoadRequest(model="q", source=models.ModelSource(remote=remote))
        assert [expected] == server.requests_of("StreamLoad")
        assert 2 == run("load", "q", "--backend", "ollama").exit_code

    def test_without_options_says_nothing(self, server: ScriptedServer, run: Run) -> None:
        """Without PATH and options the server's configuration decides; --json prints the answer."""
        loaded = models.LoadResponse(model=models.Model(name="demo"), already_loaded=True)
        server.loads = [[models.StreamLoadResponse(loaded=loaded)]]
        result = run("load", "demo", "--json")
        assert True is json.loads(result.stdout)["already_loaded"]
        assert [models.LoadRequest(model="demo")] == server.requests_of("StreamLoad")

    def test_a_load_that_fails(self, server: ScriptedServer, run: Run) -> None:
        """The hint says what a person can do about it."""
        refusal = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "loaded otherwise", "MODEL_CONFIG_CONFLICT")
        server.loads = [[refusal]]
        result = run("load", "demo", "demo.gguf")
        assert 1 == result.exit_code
        assert "--replace" in result.stderr


@pytest.mark.parametrize(
    ("response", "line"),
    [
        (models.UnloadResponse(was_loaded=True), "demo is unloaded.\n"),
        (
            models.UnloadResponse(was_loaded=True, streams_ended=2),
            "demo is unloaded; 2 running requests were ended.\n",
        ),
        (models.UnloadResponse(), "demo was not loaded.\n"),
    ],
)
def test_unload(server: ScriptedServer, run: Run, response: models.UnloadResponse, line: str) -> None:
    """It says what was there before; a drain timeout of 0 is said to the server as 0."""
    server.answers["Unload"] = response
    result = run("unload", "demo", "--drain-timeout", "0")
    assert (0, line) == (result.exit_code, result.stdout)
    [request] = server.requests_of("Unload")
    assert isinstance(request, models.UnloadRequest)
    assert request.HasField("drain_timeout")
    assert not run("unload", "demo", "--json").stderr


class TestModels:
    LIST = inference.ListModelsResponse(
        models=[
            models.Model(name="demo", state=READY, backend="local", context_length=1024, size_bytes=2048),
            models.Model(
                name="new",
                state=models.ModelState.MODEL_STATE_LOADING,
                load_progress=models.LoadProgress(fraction=0.5),
            ),
            models.Model(
                name="odd",
                state=models.ModelState.MODEL_STATE_FAILED,
                failure=models.Failure(message="the file is cut short"),
            ),
        ],
        default_model="demo",
    )

    def test_table(self, server: ScriptedServer, run: Run) -> None:
        """Each model is a row; the default has a star, a load its progress, a failure its message."""
        server.answers["ListModels"] = self.LIST
        result = run("models", env={"COLUMNS": "120"})
        rows = [row.split() for row in result.stdout.splitlines()]
        assert ["NAME", "STATE", "BACKEND", "QUANT", "CONTEXT", "SIZE", "STREAMS", "QUEUED"] == rows[0]
        assert ["demo*", "ready", "local", "1024", "2", "KiB", "0", "0"] == rows[1]
        assert ["new", "loading", "50%"] == rows[2][:3]
        assert "failed: the file is cut short" in result.stdout

    def test_json(self, server: ScriptedServer, run: Run) -> None:
        """--json is the ListModelsResponse."""
        server.answers["ListModels"] = self.LIST
        document = json.loads(run("models", "--json").stdout)
        assert ["demo", "new", "odd"] == [model["name"] for model in document["models"]]

    def test_watch(self, server: ScriptedServer, run: Run) -> None:
        """--watch prints every snapshot until the server ends it, which is a failure."""
        server.watches = [
            [
                inference.WatchModelsResponse(revision=1, models=[models.Model(name="demo", state=READY)]),
                inference.WatchModelsResponse(revision=2),
                Refusal(grpc.StatusCode.ABORTED, "going away", "DRAINING"),
            ]
        ]
        result = run("models", "--watch")
        assert 1 == result.exit_code
        assert 2 == result.stdout.count("NAME")
        assert "DRAINING" in result.stderr


class TestHealth:
    @pytest.mark.parametrize(("ready", "code"), [(True, 0), (False, 1)])
    def test_the_exit_code_is_the_answer(
        self, server: ScriptedServer, run: Run, ready: bool, code: int
    ) -> None:
        """0 is ready, 1 is not."""
        model = inference.ModelHealth(
            name="demo",
            state=READY,
            streams_in_flight=3,
            queue_length=1,
            parallel_sequences=8,
            queue_capacity=64,
        )
        server.answers["Health"] = inference.HealthResponse(version="0.1.0", ready=ready, models=[model])
        result = run("health")
        assert code == result.exit_code
        assert [
            f"{'' if ready else 'not '}ready: inferwire 0.1.0, up 0 s",
            "  demo: ready, 2 of 8 running, 1 of 64 queued",
        ] == result.stdout.splitlines()
        assert ready == json.loads(run("health", "--json").stdout)["ready"]


class TestProbe:
    """The standard health service, as an orchestrator asks it."""

    @pytest.fixture
    def server(self) -> ScriptedServer:
        return ScriptedServer()

    @pytest.mark.parametrize(
        ("service", "code", "line"),
        [
            ("liveness", 0, "liveness: SERVING\n"),
            ("readiness", 1, "readiness: NOT_SERVING\n"),
            ("model/demo", 0, "model/demo: SERVING\n"),
            ("model/nope", 1, ""),
        ],
    )
    def test_names(self, server: ScriptedServer, run: Run, service: str, code: int, line: str) -> None:
        """`readiness` is the empty name of the protocol; an unknown name is a failure."""
        servicer = health.HealthServicer()
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        servicer.set("liveness", health_pb2.HealthCheckResponse.SERVING)
        servicer.set("model/demo", health_pb2.HealthCheckResponse.SERVING)
        server.add(lambda registered: health_pb2_grpc.add_HealthServicer_to_server(servicer, registered))
        with server:
            result = run("health", "--service", service)
        assert (code, line) == (result.exit_code, result.stdout)


class TestTokens:
    PIECES = (b"Hi", b" ", b"\xc3", b"\n")

    @pytest.fixture(autouse=True)
    def tokenize(self, server: ScriptedServer) -> None:
        server.answers["Tokenize"] = inference.TokenizeResponse(token_ids=[7, 8, 9, 10], pieces=self.PIECES)

    def test_shows_where_the_text_is_cut(self, run: Run) -> None:
        """What is not UTF-8 or not printable is escaped, so that each token can be seen."""
        assert "4 tokens\nHi| |\\xc3|\\n\n" == run("tokens", "Hi", "--special").stdout

    def test_ids(self, server: ScriptedServer, run: Run) -> None:
        """--ids shows a token a line; the text may be piped."""
        result = run("tokens", "--ids", input="Hi")
        assert ["4 tokens", "       7  Hi", "       8   "] == result.stdout.splitlines()[:3]
        assert [inference.TokenizeRequest(text="Hi")] == server.requests_of("Tokenize")

    def test_json(self, run: Run) -> None:
        """--json carries the bytes as they are."""
        pieces = json.loads(run("tokens", "Hi", "--json").stdout)["pieces"]
        assert list(self.PIECES) == [base64.b64decode(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("given", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("1h", 3600), ("250ms", 0.25), ("0", 0)]
)
def test_seconds(given: str, seconds: float) -> None:
    """A span of time is a number with a unit, seconds without."""
    assert seconds == Seconds().convert(given, None, None)


@pytest.mark.parametrize(
    ("num_bytes", "shown"), [(0, ""), (1, "1 B"), (1536, "1.5 KiB"), (2**30, "1 GiB"), (2**50, "1024 TiB")]
)
def test_size(num_bytes: int, shown: str) -> None:
    """0 means not known and shows nothing."""
    assert shown == size(num_bytes)
