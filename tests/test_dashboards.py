"""The Grafana dashboard and the alerts ask for nothing that a server with traffic does not tell."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import grpc
import promql_parser
import pytest
import yaml

from inferwire.v1 import inference_pb2 as pb
from inferwire_server import errors
from inferwire_server.backends.breaker import State
from inferwire_server.config import BackendSettings, RouteSettings
from tests.providers.asking import chat
from tests.providers.openai import OpenAIWire
from tests.providers.server import Reply, provider
from tests.serving import bare_stub, demo, failure, running
from tests.test_metrics import ON, Scrape, until_told

DEPLOY = pathlib.Path(__file__).parents[1] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/inferwire.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"][0]["rules"]
# What Prometheus adds to every sample, and what makes a histogram of several.
ADDED = {"job", "instance", "le"}
# What Grafana puts in before Prometheus sees a query.
FILLED_IN = {"$__rate_interval": "5m", "$job": ".*", "$instance": ".*", "$model": ".*"}


def queries() -> Iterator[tuple[str, str]]:
    """Yields every query with where it stands."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for variable, value in FILLED_IN.items():
                expression = expression.replace(variable, value)
            yield f"{panel['title']} {target['refId']}", expression
    for rule in RULES:
        yield rule["alert"], rule["expr"]


QUERIES = dict(queries())


def selectors(expression: promql_parser.Expr) -> list[promql_parser.VectorSelector]:
    """Returns every selector of an expression."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(expression, pre_visit=visit)
    return found


def labels_of(expression: promql_parser.Expr) -> Iterator[tuple[str, str]]:
    """Yields each metric with each label that an expression asks of it, by a matcher or by a grouping."""

    def grouped(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            pairs.extend(
                (each.name or "", label) for each in selectors(node.expr) for label in node.modifier.labels
            )

    pairs: list[tuple[str, str]] = []
    promql_parser.walk(expression, pre_visit=grouped)
    for selector in selectors(expression):
        pairs += [(selector.name or "", matcher.name) for matcher in selector.matchers.matchers]
    yield from pairs


async def traffic() -> Scrape:
    """Returns a scrape of a server that has answered, refused, gone on to another candidate, and failed."""
    async with (
        provider(OpenAIWire()) as upstream,
        running(
            models={"demo": demo()},
            backends={
                "x": BackendSettings(type="openai", base_url=upstream.url, models=["m"], health_seconds=0)
            },
            routes={"best": RouteSettings(candidates=["x/m", "demo"], retries=0)},
            **ON,
        ) as (server, client),
        bare_stub(server) as stub,
    ):
        upstream.reply = Reply(status=503)
        await failure(stub.Complete(chat(model="x/m")))
        await failure(stub.Complete(pb.CompleteRequest()))
        for _ in range(2):
            await client.complete(pb.CompleteRequest(model="best", prompt="Once upon a time"))
        return await until_told(server, lambda told: told("inferwire_calls_total") == 4)


async def test_every_metric_and_label_is_told():
    """A query of what no server tells would be an empty graph, and an alert that never fires."""
    told = await traffic()
    missing = {
        where: (metric, label)
        for where, query in QUERIES.items()
        for metric, label in labels_of(promql_parser.parse(query))
        if not any(label in {*labels, *ADDED} for labels in told.labels(metric))
    }
    assert {} == missing
    asked = {each.name for query in QUERIES.values() for each in selectors(promql_parser.parse(query))}
    assert {} == {name: told.labels(name) for name in asked if not told.labels(name)}
    assert len(asked) > 25


@pytest.mark.parametrize("where", QUERIES)
def test_a_value_that_is_asked_for_can_be(where):
    """A reason, a code or a state with a mistake in it would match nothing."""
    possible = {
        "code": set(grpc.StatusCode.__members__),
        "reason": set(errors.BY_REASON),
        "state": {state.value for state in State},
    }
    for selector in selectors(promql_parser.parse(QUERIES[where])):
        for matcher in selector.matchers.matchers:
            if matcher.name in possible:
                assert set(matcher.value.split("|")) <= possible[matcher.name]


def test_a_legend_names_what_is_grouped():
    """A label that a query sums away is empty in the legend."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            labels = re.findall(r"{{(\w+)}}", target["legendFormat"])
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            assert all(set(labels) <= set(re.split(r", *", each)) for each in grouped), target


def test_the_dashboard_is_fresh():
    """What is committed is what its source writes."""
    command = [sys.executable, DEPLOY / "grafana/dashboard.py", "--check"]
    assert 0 == subprocess.run(command, check=False).returncode


def test_graphs_do_not_overlap():
    """Each has a place of its own, and a number."""
    taken = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len(DASHBOARD["panels"]) == len({panel["id"] for panel in DASHBOARD["panels"]})


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule):
    """Its labels and words are there, and its words name only labels that its query keeps."""
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert {"summary", "description"} == set(rule["annotations"])
    named = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    for grouped in re.findall(r"by \(([^)]*)\)", rule["expr"]):
        assert named <= set(re.split(r", *", grouped))
