"""The rows' fixtures, and the run that writes the scorecard (`make reliability`)."""

from __future__ import annotations

import pathlib
import random
import sys
from collections.abc import Callable

import pytest

from inferwire_server.config import ModelSettings

from . import rig
from .scorecard import Scorecard

SEED = 20261121
HERE = pathlib.Path(__file__).parent
CARD = pytest.StashKey[Scorecard]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of runs that name this folder."""
    group = parser.getgroup("reliability")
    group.addoption(
        "--nightly", action="store_true", help="run the long rows too, and the others at full length"
    )
    group.addoption("--scorecard", action="store_true", help="write scorecard.json and README.md")
    group.addoption("--seed", type=int, default=SEED, help="draw anew; what is printed replays a run")


def pytest_configure(config: pytest.Config) -> None:
    """Begins an empty scorecard."""
    config.stash[CARD] = Scorecard()
    config.addinivalue_line("markers", "nightly: a row that takes minutes; runs with --nightly")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the long rows out where nobody asked for them, and all where the system does not tell what they look at."""
    if sys.platform != "linux":
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="the rows read /proc"))
    if config.getoption("nightly", False):
        return
    left_out = [item for item in items if item.get_closest_marker("nightly")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints what was measured."""
    lines = list(config.stash[CARD].lines())
    if lines:
        terminalreporter.section(f"reliability, seed {config.getoption('seed', SEED)}")
        terminalreporter.write("\n".join(lines) + "\n")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the scorecard when it was asked for."""
    if session.config.getoption("scorecard", False):
        session.config.stash[CARD].write()


@pytest.fixture
def card(request: pytest.FixtureRequest) -> Scorecard:
    """Where figures are told."""
    return request.config.stash[CARD]


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    """The test's chance; its seed is printed when the test fails."""
    seed = request.config.getoption("seed", SEED)
    print(f"seed {seed}: replay with pytest {request.node.nodeid} --seed {seed}")
    return random.Random(f"{seed} {request.node.name}")


@pytest.fixture
def is_nightly(request: pytest.FixtureRequest) -> bool:
    """Whether rows run at full length."""
    return bool(request.config.getoption("nightly", False))


@pytest.fixture
def stub(tmp_path) -> Callable[..., ModelSettings]:
    """Makes models for stub engines; see `rig.stub_model`."""

    def make(name: str = "stub", **plan) -> ModelSettings:
        return rig.stub_model(tmp_path, name, **plan)

    return make
