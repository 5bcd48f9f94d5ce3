"""Helm and the schemas that its output is held against, fetched once by the Go toolchain and kept under build/."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import yaml

from .interoperability.tools import lacking

ROOT = pathlib.Path(__file__).parents[1]
CHART = ROOT / "deploy" / "helm" / "inferwire"
HELM = "helm.sh/helm/v4/cmd/helm@v4.3.1"
PROMETHEUS_OPERATOR = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
GATEWAY_API = "sigs.k8s.io/gateway-api@v1.6.3"
COMPOSE = "github.com/compose-spec/compose-go/v2@v2.16.2"

Document = dict[str, Any]


def go() -> str:
    """Returns the Go command."""
    return shutil.which("go") or lacking("Go is not installed; helm and schemas come by it")


@functools.cache
def helm() -> pathlib.Path:
    """Returns the helm command, built minutes ago or long ago."""
    folder = ROOT / "build" / "helm" / HELM.rpartition("@")[2]
    if not (folder / "helm").exists():
        unfinished = folder / f"unfinished-{os.getpid()}"
        ended = subprocess.run(
            [go(), "install", "-p", "2", "-trimpath", "-ldflags", "-s -w", HELM],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "GOBIN": str(unfinished), "CGO_ENABLED": "0"},
        )
        if ended.returncode != 0:
            lacking(f"helm cannot be built: {ended.stderr}")
        (unfinished / "helm").rename(folder / "helm")
        unfinished.rmdir()
    return folder / "helm"


@functools.cache
def module_folder(module: str) -> pathlib.Path:
    """Returns where the Go toolchain keeps a module."""
    ended = subprocess.run(
        [go(), "mod", "download", "-json", module], check=False, stdout=subprocess.PIPE, cwd=ROOT
    )
    found = json.loads(ended.stdout or "{}")
    if "Error" in found or "Dir" not in found:
        lacking(f"{module} cannot be had: {found.get('Error')}")
    return pathlib.Path(found["Dir"])


def run(*arguments: str | pathlib.Path, values: Mapping[str, Any] | None = None) -> str:
    """Returns what helm prints; `values` come last. Raises subprocess.CalledProcessError with what went wrong."""
    return _run(tuple(arguments), yaml.safe_dump(dict(values or {})))


# Helm takes half a second to start, and many tests look at the same documents.
@functools.cache
def _run(arguments: tuple[str | pathlib.Path, ...], values: str) -> str:
    folder = ROOT / "build" / "helm" / "home"
    environment = {f"HELM_{name}_HOME": str(folder / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
    ended = subprocess.run(
        [helm(), *arguments, "--values", "-"],
        input=values,
        capture_output=True,
        text=True,
        check=False,
        # No cluster may have a say.
        env={**os.environ, **environment, "KUBECONFIG": os.devnull},
    )
    if ended.returncode != 0:
        raise subprocess.CalledProcessError(ended.returncode, "helm", ended.stdout, ended.stderr)
    return ended.stdout


def rendered(
    values: Mapping[str, Any] | None = None,
    *,
    files: tuple[str, ...] = (),
    kubernetes: str = "1.37.0",
) -> list[Document]:
    """Returns the documents that the chart makes of values, the files of the chart's folder `values` first."""
    options = [option for file in files for option in ("--values", str(CHART / "values" / file))]
    text = run("template", "rel", CHART, "--kube-version", kubernetes, *options, values=values)
    return [document for document in yaml.safe_load_all(text) if document]


def only(documents: list[Document], kind: str, suffix: str = "") -> Document:
    """Returns the one document of a kind whose name ends so."""
    (found,) = (
        each
        for each in documents
        if each["kind"] == kind and each["metadata"]["name"] == f"rel-inferwire{suffix}"
    )
    return found


def at(document: Any, path: str) -> Any:
    """Returns the part of a document that a path such as `spec.ports[1].name` leads to; None where there is none."""
    for step in path.replace("[", ".[").split("."):
        if document is None:
            return None
        if step.startswith("["):
            index = int(step[1:-1])
            document = document[index] if index < len(document) else None
        else:
            document = document.get(step.replace("~", "."))
    return document


def strict(schema: Any) -> Any:
    """Returns a schema of a custom resource that refuses what it does not name, as `kubectl` does."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not is_open:
        result["additionalProperties"] = False
    return result
