"""Settings: a file, the environment and flags, in that order of rank; mistakes name their key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from inferwire.v1 import models_pb2
from inferwire_server import config
from inferwire_server.backends import providers


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(
    text: str = "", here: Path | None = None, *, environment: Mapping[str, str] | None = None, **flags: Any
) -> config.Settings:
    file = None
    if here is not None:
        file = here / "settings.toml"
        file.write_text(text, encoding="utf-8")
    return config.load(file, environment=environment or {}, flags=flags)


def mistake(text: str, here: Path, *, environment: Mapping[str, str] | None = None, **flags: Any) -> str:
    with pytest.raises(config.ConfigError) as caught:
        load(text, here, environment=environment, **flags)
    return str(caught.value)


class TestRank:
    def test_defaults(self, here: Path) -> None:
        """With nothing said the server is on loopback, with reflection."""
        settings = load()
        assert config.Settings() == settings
        assert ("127.0.0.1", 50051, True, True) == (
            settings.main.host, settings.main.port, settings.main.is_local, settings.has_reflection,
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("environment", "flags", "level"),
        [
            ({}, {}, "debug"),
            ({"INFERWIRE_LOG_LEVEL": "warning"}, {}, "warning"),
            ({"INFERWIRE_LOG_LEVEL": "warning"}, {"log_level": None}, "warning"),
            ({"INFERWIRE_LOG_LEVEL": "warning"}, {"log_level": "error"}, "error"),
            ({}, {"log_level": "error"}, "error"),
        ],
    )
    def test_a_flag_outranks_the_environment_outranks_the_file(
        self, here: Path, environment: dict[str, str], flags: dict[str, Any], level: str
    ) -> None:
        """A flag that was not given says nothing."""
        assert level == load('log_level = "debug"', here, environment=environment, **flags).log_level

    def test_tables_merge_key_by_key(self, here: Path) -> None:
        """A flag for one model leaves the others, and a key of the environment leaves its table."""
        settings = load(
            '[engine]\nstall_seconds = 5\nmax_restarts = 1\n[models.a]\npath = "a.gguf"\npinned = true\n'
            '[models.b]\npath = "b.gguf"\n',
            here,
            environment={"INFERWIRE_ENGINE_STALL_SECONDS": "7"},
            models={"a": {"path": "other.gguf"}},
        )
        assert (7.0, 1) == (settings.engine.stall_seconds, settings.engine.max_restarts)
        assert {"a": ("other.gguf", True), "b": ("b.gguf", False)} == {
            name: (model.path, model.pinned) for name, model in settings.models.items()
        }

    def test_the_file_of_the_folder(self, here: Path) -> None:
        """Without a file named, inferwire.toml of the working folder counts, if there is one."""
        (here / "inferwire.toml").write_text('default_model = "é"', encoding="utf-8")
        assert "é" == load().default_model

    def test_types_of_the_environment(self, here: Path) -> None:
        """Texts become numbers, switches and lists."""
        settings = load(
            environment={
                "INFERWIRE_INSECURE": "true", "INFERWIRE_REFLECTION": "false", "INFERWIRE_DRAIN_SECONDS": "2.5",
                "INFERWIRE_ENGINE_QUEUE_CAPACITY": "0", "INFERWIRE_MODEL_ROOTS": os.pathsep.join([str(here), "/"]),
            }
        )  # fmt: skip
        assert (True, False, 2.5, 0, [str(here), "/"]) == (
            settings.insecure, settings.reflection, settings.drain_seconds, settings.engine.queue_capacity,
            settings.model_roots,
        )  # fmt: skip

    def test_settings_are_frozen(self) -> None:
        """Nobody changes them after the start."""
        with pytest.raises(AttributeError):
            config.Settings().address = "x"  # type: ignore[misc]


class TestWeb:
    def test_a_list_of_origins_from_the_environment(self, here: Path) -> None:
        """At commas: an origin has colons itself."""
        settings = load(
            environment={
                "INFERWIRE_WEB_ADDRESS": "127.0.0.1:8080",
                "INFERWIRE_WEB_ORIGINS": "https://a.example,http://localhost:5173",
            }
        )
        assert ("127.0.0.1:8080", ["https://a.example", "http://localhost:5173"]) == (
            settings.web_address, settings.web_origins,
        )  # fmt: skip

    @pytest.mark.parametrize(
        "origin", ["*", "null", "https://a.example", "http://[::1]:1", "tauri://localhost"]
    )
    def test_origins(self, here: Path, origin: str) -> None:
        """As browsers write them."""
        assert [origin] == load(f"web_origins = ['{origin}']", here).web_origins

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("web_origins = ['https://a.example/']", "web_origins: 'https://a.example/' is no origin"),
            ("web_origins = ['https://A.example']", "is no origin"),
            ("web_origins = ['a.example']", "is no origin"),
            ("web_origins = ['https://a,https://b']", "is no origin"),
            ("web_origins = ['https://*.a.example', '']", "is no origin"),
            ("web_address = '8080'", "web_address '8080' is not HOST:PORT"),
            ("web_address = '0.0.0.0:8080'", "web_address '0.0.0.0:8080' can be reached from other machines"),
        ],
    )
    def test_mistakes(self, here: Path, text: str, words: str) -> None:
        """What no browser would send, and an address that is open to others by accident."""
        assert words in mistake(text, here)
        assert load("insecure = true\nweb_address = '0.0.0.0:8080'", here).web_address


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("adress = 'x'", "unknown key adress; did you mean address?"),
            ("zzz = 1", "unknown key zzz"),
            ("[engine]\nstall_secs = 1", "unknown key engine.stall_secs; did you mean engine.stall_seconds?"),
            ("[models.a]\npth = 'x'", "unknown key models.a.pth; did you mean models.a.path?"),
        ],
    )
    def test_of_the_file(self, here: Path, text: str, words: str) -> None:
        """A key that no setting has names itself and the nearest one that is."""
        assert words == mistake(text, here)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("INFERWIRE_ADDRES", "unknown key INFERWIRE_ADDRES; did you mean INFERWIRE_ADDRESS?"),
            (
                "INFERWIRE_ENGINE_STALL",
                "unknown key INFERWIRE_ENGINE_STALL; did you mean INFERWIRE_ENGINE_STALL_SECONDS?",
            ),
            ("INFERWIRE_QQQQ", "unknown key INFERWIRE_QQQQ"),
            ("INFERWIRE_MODELS", "unknown key INFERWIRE_MODELS; did you mean INFERWIRE_MODEL_ROOTS?"),
            ("INFERWIRE_ENGINE", "unknown key INFERWIRE_ENGINE"),
        ],
    )
    def test_of_the_environment(self, here: Path, name: str, words: str) -> None:
        """A variable with our prefix is ours, so a misspelt one is an error."""
        assert mistake("", here, environment={name: "1"}).startswith(words)

    @pytest.mark.parametrize(
        "name",
        [
            "INFERWIRE_SERVICE_HOST", "INFERWIRE_SERVICE_PORT", "INFERWIRE_SERVICE_PORT_GRPC", "INFERWIRE_PORT",
            "INFERWIRE_PORT_50051_TCP", "INFERWIRE_PORT_50051_TCP_PROTO", "INFERWIRE_PORT_50051_TCP_PORT",
            "INFERWIRE_PORT_50051_TCP_ADDR", "INFERWIRE_PORT_53_UDP_ADDR", "INFERWIRE_HEADLESS_SERVICE_HOST",
            "INFERWIRE_HEADLESS_SERVICE_PORT_GRPC", "INFERWIRE_HEADLESS_PORT_50051_TCP_ADDR",
            "INFERWIRE_CANARY_2_PORT", "INFERWIRE_TOKEN", "INFERWIRE_CONFIG", "OTHER_ADDRESS",
        ],
    )  # fmt: skip
    def test_what_is_not_ours(self, name: str) -> None:
        """Kubernetes' variables for services of our name, and those of the command line, are no settings."""
        assert config.Settings() == config.load(None, environment={name: "tcp://10.0.0.1:50051"})


class TestValues:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("address = 5", "Expected `str`, got `int` - at `address`"),
            ("drain_seconds = -1", "Expected `float` >= 0.0 - at `drain_seconds`"),
            ("drain_seconds = nan", "Expected `float` >= 0.0 - at `drain_seconds`"),
            ("drain_seconds = inf", "Expected `float` <= 315360000.0 - at `drain_seconds`"),
            ("max_completion_seconds = 0", "Expected `float` > 0.0 - at `max_completion_seconds`"),
            ("max_completion_seconds = inf", "Expected `float` <= 315360000.0 - at `max_completion_seconds`"),
            ("log_level = 'loud'", "Invalid enum value 'loud' - at `log_level`"),
            ("models = 3", "Expected `object`, got `int` - at `models`"),
            ("engine = 3", "Expected `object`, got `int` - at `engine`"),
            ("[models.a]", "Object missing required field `path` - at `models[...]`"),
            ("[models.a]\npath = 'x'\nkeep_alive_seconds = 0",
             "Expected `float` > 0.0 - at `models[...].keep_alive_seconds`"),
            ("[engine]\nqueue_capacity = -1", "Expected `int` >= 0 - at `engine.queue_capacity`"),
            ("[models.'a b']\npath = 'x'",
             "models.a b: a model's name has 1 to 128 of the characters a-z A-Z 0-9 _ - . : /"),
            ("model_roots = ['/no/such/folder']", "model_roots: /no/such/folder is not a directory"),
        ],
    )  # fmt: skip
    def test_a_mistake_names_its_key(self, here: Path, text: str, words: str) -> None:
        """Words for people: what was expected, and where."""
        assert words == mistake(text, here)

    def test_a_file_that_cannot_be_read(self, here: Path) -> None:
        """Missing, no TOML, no text: the file is named."""
        with pytest.raises(config.ConfigError, match=r"nowhere\.toml: No such file or directory"):
            config.load(here / "nowhere.toml", environment={})
        with pytest.raises(config.ConfigError, match="Is a directory"):
            config.load(here, environment={})
        assert "settings.toml: " in mistake("a = ", here)
        (here / "settings.toml").write_bytes(b"a = '\xff'")
        with pytest.raises(config.ConfigError, match=r"settings\.toml: "):
            config.load(here / "settings.toml", environment={})

    def test_the_config_of_a_model(self, here: Path) -> None:
        """It has the keys of the contract's LoadConfig."""
        settings = load(
            "[models.a]\npath = 'x'\nconfig = {context_length = 128, key_cache_type = 'CACHE_TYPE_Q8_0'}\n",
            here,
        )
        expected = models_pb2.LoadConfig(context_length=128, key_cache_type=models_pb2.CACHE_TYPE_Q8_0)
        assert expected == settings.models["a"].load_config()

    @pytest.mark.parametrize(
        ("value", "key"),
        [
            ("{contxt = 3}", "contxt"),
            ("{context_length = 'abc'}", "context_length"),
            ("{context_length = -1}", "context_length"),
            ("{context_length = 1979-05-27}", "context_length"),
            ("{rope = 5}", "rope"),
            ("{rope = {base = 5}}", "base"),
            ("{tensor_split = 3}", "tensor_split"),
            ("{key_cache_type = 'TINY'}", "key_cache_type"),
        ],
    )
    def test_a_bad_config_of_a_model(self, here: Path, value: str, key: str) -> None:
        """The message names the model and the key."""
        words = mistake(f"[models.a]\npath = 'x.gguf'\nconfig = {value}\n", here)
        assert words.startswith("config of the model at x.gguf: ")
        assert key in words


class TestAddress:
    @pytest.mark.parametrize(
        ("address", "host", "port", "is_local"),
        [
            ("127.0.0.1:0", "127.0.0.1", 0, True),
            ("127.9.9.9:65535", "127.9.9.9", 65535, True),
            ("localhost:1", "localhost", 1, True),
            ("[::1]:1", "::1", 1, True),
            ("0.0.0.0:1", "0.0.0.0", 1, False),
            ("[::]:1", "::", 1, False),
            ("10.0.0.1:1", "10.0.0.1", 1, False),
            ("example.com:1", "example.com", 1, False),
            ("127.0.0.1.example.com:1", "127.0.0.1.example.com", 1, False),
            ("localhost.example.com:1", "localhost.example.com", 1, False),
        ],
    )
    def test_parts(self, address: str, host: str, port: int, is_local: bool) -> None:
        """Host and port, and whether other machines can reach it: a name only looks like loopback."""
        settings = load(address=address, insecure=True)
        assert (host, port, is_local) == (settings.main.host, settings.main.port, settings.main.is_local)
        assert is_local == settings.has_reflection
        if not is_local:
            for key in ("address", "admin_address"):
                with pytest.raises(config.ConfigError, match=f"^{key} .* can be reached from other machines"):
                    load(**{key: address})
            assert not load(address=address, tls_certificate="a.pem", tls_key="a.key").has_reflection

    @pytest.mark.parametrize(
        "address", ["", "localhost", ":1", "localhost:", "localhost:x", "localhost:65536", "h:-1"]
    )
    def test_what_is_none(self, address: str) -> None:
        """An address is HOST:PORT."""
        with pytest.raises(config.ConfigError, match="is not HOST:PORT"):
            load(address=address)

    @pytest.mark.parametrize(("address", "reflection"), [("0.0.0.0:1", True), ("127.0.0.1:1", False)])
    def test_reflection_as_set(self, address: str, reflection: bool) -> None:
        """What was said outranks the rule."""
        assert reflection == load(address=address, insecure=True, reflection=reflection).has_reflection


def test_a_models_config_is_checked_when_the_server_starts(tmp_path):
    """What a Load would refuse is refused before the port opens, by its key."""
    file = tmp_path / "inferwire.toml"
    file.write_text('[models.a]\npath = "a.gguf"\n[models.a.config]\nparallel_sequences = 0\n')
    with pytest.raises(
        config.ConfigError, match=r"models\.a\.config\.parallel_sequences: must be 1 or more, at most 256"
    ):
        config.load(file, environment={})


BACKEND = '[backends.b]\ntype = "openai"\nmodels = ["m"]\n'


class TestBackends:
    """Backends and routes: every mistake is one line that names the key, and the nearest right one where there is one."""

    def test_all_keys_are_read(self, here: Path) -> None:
        """Tables, lists and both ways to write a candidate."""
        text = (
            BACKEND + 'headers = {"x-team" = "a"}\nquery = {"api-version" = "1"}\nidle_seconds = 5\n'
            '[backends.b.options]\nusage = false\n[routes.r]\ncandidates = ["b/m", {model = "b/m", weight = 2}]\n'
            'fallback_on = ["unreachable"]\nretries = 0\n'
        )
        settings = load(text, here)
        assert ({"x-team": "a"}, 5.0) == (settings.backends["b"].headers, settings.backends["b"].idle_seconds)
        assert (config.Candidate("b/m"), config.Candidate("b/m", 2.0)) == settings.routes["r"].models
        assert not settings.serves_demo

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (BACKEND + 'api_key = "sk"', ["backends.b.api_key", "did you mean backends.b.api_key_env?"]),
            (BACKEND + "idle_second = 3", ["backends.b.idle_second", "backends.b.idle_seconds"]),
            (BACKEND + "idle_seconds = -1", ["backends[...].idle_seconds"]),
            ("[backends.b]\nmodels = []", ["type"]),
            ('[backends.local]\ntype = "openai"', ["backends.local", "local"]),
            ('[backends."a b"]\ntype = "openai"', ["backends.a b", "64"]),
            (BACKEND + '[routes.r]\ncandidate = ["b/m"]', ["routes.r.candidate", "routes.r.candidates"]),
            (BACKEND + "[routes.r]\ncandidates = []", ["routes.r.candidates", "at least one"]),
            (
                BACKEND + '[routes.r]\ncandidates = ["b/n"]',
                ["routes.r.candidates", "'b/n'", "did you mean b/m?"],
            ),
            (BACKEND + '[routes.r]\ncandidates = ["c/m"]', ["routes.r.candidates", "did you mean b/m?"]),
            (BACKEND + '[routes.r]\ncandidates = ["r"]', ["routes.r.candidates", "route itself"]),
            (
                BACKEND + '[routes.r]\ncandidates = ["s"]\n[routes.s]\ncandidates = ["r"]',
                ["routes.r.candidates", "s is a route itself"],
            ),
            (BACKEND + '[routes.r]\ncandidates = ["b/m"]\nfallback_on = ["unreachible"]', ["fallback_on"]),
            (BACKEND + '[routes.r]\ncandidates = [{model = "b/m", weight = 0}]', ["weight"]),
            (
                '[models.r]\npath = "x"\n' + BACKEND + '[routes.r]\ncandidates = ["b/m"]',
                ["routes.r", "a model"],
            ),
        ],
    )
    def test_a_mistake_is_named(self, here: Path, text: str, words: list[str]) -> None:
        """Whatever is wrong."""
        told = mistake(text, here)
        assert [] == [word for word in words if word not in told], told

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('[backends.b]\ntype = "opnai"', ["backends.b.type", "did you mean openai?"]),
            ('[backends.b]\ntype = "vllm"', ["backends.b", "base_url must be set"]),
            ('[backends.b]\ntype = "vllm"\nbase_url = "localhost:8000"', ["backends.b", "base_url"]),
            ('[backends.b]\ntype = "vllm"\nbase_url = "http://u:p@h/v1"', ["backends.b", "base_url", "key"]),
            (BACKEND + 'api_key_env = "NOT_THERE"', ["backends.b", "api_key_env", "NOT_THERE"]),
            (BACKEND + 'api_key_file = "/not/there"', ["backends.b", "api_key_file", "cannot be read"]),
            (BACKEND + 'ca_file = "/not/there"', ["backends.b", "ca_file"]),
            (
                BACKEND + '[backends.b.options]\nsuports = ["prompt"]',
                ["backends.b.options.suports", "did you mean backends.b.options.supports?"],
            ),
            (BACKEND + "[backends.b.options]\nusage = 3", ["backends.b.options.usage"]),
        ],
    )
    async def test_what_only_the_backend_knows_is_named_as_well(
        self, here: Path, text: str, words: list[str]
    ) -> None:
        """At the start, before the port opens."""
        settings = load(text, here)
        with pytest.raises(config.ConfigError) as caught:
            providers.build(settings.backends)
        assert [] == [word for word in words if word not in str(caught.value)], str(caught.value)

    def test_a_key_shows_itself_to_nobody(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not even in a repr of everything that holds it."""
        monkeypatch.setenv("KEY", "sk-canary")
        settings = load(BACKEND + 'api_key_env = "KEY"', here)
        key = settings.backends["b"].read_key()
        assert "sk-canary" == key.reveal()
        assert "canary" not in f"{settings!r} {key!r} {key} {[key]}"
