"""Writes the image's bill of materials: CycloneDX, JSON, valid by its schema.

    sbom.py --environment FOLDER --system FOLDER --output FILE

Three kinds of components: the Python packages of an environment (cyclonedx-py reads them, with their licences), llama.cpp,
which one of them was compiled from, and the Debian packages of a root folder. It lists what is installed, never what a
lock file says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

SCHEMA = SchemaVersion.V1_6
# Of packages whose metadata has words in place of a name.
LICENSES = {"protobuf": "BSD-3-Clause"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the image's bill of materials.")
    parser.add_argument("--environment", type=Path, required=True, help="the virtual environment")
    parser.add_argument("--system", type=Path, required=True, help="the root folder of the final stage")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    bom = python_packages(arguments.environment)
    server = component(bom, "inferwire-server")
    image = Component(type=ComponentType.CONTAINER, name="inferwire", version=server.version, bom_ref="image")
    system = list(debian_packages(arguments.system))
    llama = llama_cpp(arguments.environment)
    bom.metadata.component = image
    bom.components.update([*system, llama])
    bom.register_dependency(component(bom, "llama_cpp_python"), [llama])
    bom.register_dependency(image, [server, *system])

    text = make_outputter(bom, OutputFormat.JSON, SCHEMA).output_as_string(indent=2)
    problem = JsonStrictValidator(SCHEMA).validate_str(text)
    if problem is not None:
        sys.exit(f"the bill of materials breaks its schema: {problem}")
    arguments.output.write_text(text + "\n")


def python_packages(environment: Path) -> Bom:
    """Returns the bill of an environment's packages."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-format", "JSON"]
    ended = subprocess.run(
        [*command, "--spec-version", SCHEMA.to_version(), environment / "bin" / "python"],
        check=True,
        stdout=subprocess.PIPE,
    )
    bom: Bom = Bom.from_json(json.loads(ended.stdout))  # type: ignore[attr-defined]
    for each in bom.components:
        # Where a package lay while the image was built says nothing to anybody else.
        each.external_references = [
            reference for reference in each.external_references if not reference.url.uri.startswith("file:")
        ]
        if not each.licenses:
            each.licenses.add(DisjunctiveLicense(id=LICENSES[each.name]))
    return bom


def component(bom: Bom, name: str) -> Component:
    """Returns the one component that has a name."""
    found: Component
    (found,) = (each for each in bom.components if each.name.replace("-", "_") == name.replace("-", "_"))
    return found


def llama_cpp(environment: Path) -> Component:
    """Returns llama.cpp, by the commit that its Python bindings name."""
    commit = (environment / "llama.cpp-commit").read_text().strip()
    return Component(
        type=ComponentType.LIBRARY,
        group="ggml-org",
        name="llama.cpp",
        version=commit,
        bom_ref=f"llama.cpp@{commit}",
        purl=PackageURL("github", "ggml-org", "llama.cpp", commit),
        licenses=[DisjunctiveLicense(id="MIT")],
    )


def debian_packages(root: Path) -> Iterator[Component]:
    """Yields what dpkg knows to be installed under a root folder."""
    release = dict(
        line.split("=", 1) for line in (root / "etc" / "os-release").read_text().splitlines() if "=" in line
    )
    distribution = release["ID"].strip('"')
    distro = f"{distribution}-{release['VERSION_ID'].strip(chr(34))}"
    fields = "${db:Status-Abbrev}\\t${Package}\\t${Version}\\t${Architecture}\\t${source:Package}\\n"
    listed = subprocess.run(
        ["dpkg-query", f"--admindir={root / 'var' / 'lib' / 'dpkg'}", "--show", f"--showformat={fields}"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in listed.stdout.splitlines():
        status, name, version, architecture, source = line.split("\t")
        if status.strip() != "ii":
            continue
        qualifiers = {"arch": architecture, "distro": distro}
        if source != name:
            qualifiers["upstream"] = source
        yield Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            bom_ref=f"deb:{name}:{architecture}",
            purl=PackageURL("deb", distribution, name, version, qualifiers),
        )


if __name__ == "__main__":
    main()
