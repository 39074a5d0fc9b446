"""The files under deploy/, and every shell script: what linters say of them, and whether they fit one another."""

import os
import re
from pathlib import Path

import pytest
import yaml

import dockerfile
import programs
from chart import CHART
from servers import REPOSITORY

# Folders that git ignores hold what others wrote; some by their name, some where they lie.
_FOLDERS = [line[:-1] for line in (REPOSITORY / ".gitignore").read_text().splitlines() if line.endswith("/")]
_IGNORED_NAMES = {".git", *(folder for folder in _FOLDERS if "/" not in folder)}
_IGNORED_PATHS = {REPOSITORY / folder.strip("/") for folder in _FOLDERS if "/" in folder}
_SHELL = re.compile(rb"#!\s*(/usr)?/bin/(env\s+)?(ba|da|k)?sh\b")


def _files():
    for where, folders, names in os.walk(REPOSITORY):
        folders[:] = sorted(f for f in folders if f not in _IGNORED_NAMES and Path(where) / f not in _IGNORED_PATHS)
        yield from (file for name in sorted(names) if (file := Path(where) / name).is_file())


def _is_shell_script(file):
    with file.open("rb") as opened:
        return _SHELL.match(opened.readline(80)) is not None


SCRIPTS = [str(file.relative_to(REPOSITORY)) for file in _files() if _is_shell_script(file)]


def said(name, *arguments):
    """What a linter says of a file: nothing where all is well."""
    done = programs.run(name, *arguments)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def hadolint(file):
    return said("hadolint", "--no-color", "--config", REPOSITORY / ".hadolint.yaml", file)


def shellcheck(file):
    return said("shellcheck", "--norc", file)


def yamllint(file):
    return said("yamllint", "--strict", "--config-file", REPOSITORY / ".yamllint.yaml", file)


pytestmark = pytest.mark.usefixtures("linters")


# Linters


def test_hadolint_finds_nothing_in_the_dockerfile():
    assert hadolint(dockerfile.FILE) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "code"),
    [
        ("FROM base AS serve\n", "FROM base AS serve\nRUN cd /tmp\n", "DL3003"),
        ("--no-install-recommends ", "", "DL3015"),
        ("COPY constraints.txt ./", "ADD constraints.txt ./", "DL3020"),
        ('[ "$(uname -m)" = x86_64 ]', "[ $(uname -m) = x86_64 ]", "SC2046"),
    ],
)
def test_hadolint_would_find_what_is_wrong(right, wrong, code, tmp_path):
    text = dockerfile.FILE.read_text()
    assert right in text
    (tmp_path / "Dockerfile").write_text(text.replace(right, wrong))
    assert code in hadolint(tmp_path / "Dockerfile")


def test_the_scripts_that_are_known_are_found():
    assert {".ci/run", "tests/install_services", "deploy/entrypoint", "deploy/compose/start-valkey"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing_in_a_script(script):
    assert shellcheck(REPOSITORY / script) == ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_may_be_executed(script):
    assert os.access(REPOSITORY / script, os.X_OK)


@pytest.mark.parametrize(
    ("script", "line", "code"),
    [
        ("deploy/compose/start-valkey", "cat $MAXMEMORY", "SC2086"),
        ("deploy/compose/make-topics", "unused=1", "SC2034"),
        ("deploy/entrypoint", "names=(a b)", "SC3030"),  # an array, which sh does not have
    ],
)
def test_shellcheck_would_find_what_is_wrong(script, line, code, tmp_path):
    shebang, _, rest = (REPOSITORY / script).read_text().partition("\n")
    (tmp_path / "script").write_text(f"{shebang}\n{line}\n{rest}")
    assert code in shellcheck(tmp_path / "script")


def test_yamllint_finds_nothing():
    assert yamllint("deploy") == ""
    for config in (".yamllint.yaml", ".hadolint.yaml"):
        assert yamllint(REPOSITORY / config) == ""


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("a: 1\na: 2", "key-duplicates"),
        ("a: yes", "truthy"),
        ("a:\n  b: 1\n   # x\n  c:\n     - 1", "indentation"),
        ("a: 1 ", "trailing-spaces"),
        (f"a: {'b ' * 60}", "line-length"),
        ("a: [1", "syntax"),
        ("a: {  b: 1 }", "braces"),
    ],
)
def test_yamllint_would_find_what_is_wrong(line, rule, tmp_path):
    (tmp_path / "file.yaml").write_text(f"{line}\n")
    assert rule in yamllint(tmp_path / "file.yaml")


def test_yamllint_reads_all_but_helms_templates_and_links():
    read = programs.run("yamllint", "--list-files", "--config-file", REPOSITORY / ".yamllint.yaml", "deploy")
    there = {file for suffix in ("*.yaml", "*.yml") for file in (REPOSITORY / "deploy").rglob(suffix)}
    left_out = {CHART / "templates", CHART / "files"}
    expected = {file for file in there if left_out.isdisjoint(file.parents)}
    assert {REPOSITORY / line for line in read.stdout.splitlines()} == expected


# The Dockerfile and what it is built from


def test_the_dockerfiles_images_are_those_that_its_first_lines_name():
    images = {stage.name for stage in dockerfile.stages() if stage.base == "base"}
    assert dockerfile.tags().keys() == images
    assert dockerfile.stages()[-1].name == "serve", "what is built where no target is named"


def test_each_stage_is_built_from_one_that_stands_before_it():
    known = {"${PYTHON_IMAGE}"}
    for stage in dockerfile.stages():
        assert stage.base in known, stage
        known.add(stage.name)
    assert set(re.findall(r"(?:--|,)from=([\w-]+)", dockerfile.FILE.read_text())) <= known


def test_the_charts_readme_names_the_tags_of_the_images():
    version = dockerfile.tags()["serve"]
    endings = {tag.removeprefix(version) for tag in dockerfile.tags().values()} - {""}
    readme = (CHART / "README.md").read_text()
    assert set(re.findall(r"`(-[a-z][a-z-]*)`", readme)) == endings


def test_the_images_have_the_version_of_the_package_and_the_chart():
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    arguments = dict(
        rest.split("=", 1) for name, rest in dockerfile.instructions(dockerfile.FILE.read_text()) if name == "ARG"
    )
    assert arguments["VERSION"] == dockerfile.tags()["serve"] == about["appVersion"]


def test_no_image_runs_as_root():
    last = {}
    for name, rest in dockerfile.instructions(dockerfile.FILE.read_text()):
        if name == "FROM":
            stage = rest.rpartition(" ")[2]
        elif name == "USER":
            last[stage] = rest
    assert last == dict.fromkeys(dockerfile.tags(), "10001:10001")


def _sources(text):
    for name in dockerfile.copied(text):
        source = REPOSITORY / name
        assert source.exists(), name
        if source.is_file():
            yield Path(name)
        else:
            found = (file for file in source.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
            yield from (file.relative_to(REPOSITORY) for file in found)


def test_dockerignore_lets_through_what_the_dockerfile_copies():
    sources = list(_sources(dockerfile.FILE.read_text()))
    assert {Path("stream_vae/settings.py"), Path("pyproject.toml"), Path("deploy/entrypoint")} <= set(sources)
    ignore = dockerfile.IGNORE.read_text()
    assert [str(path) for path in sources if not dockerfile.lets_through(path, ignore)] == []


def test_a_source_that_dockerignore_holds_back_would_be_found():
    ignore = dockerfile.IGNORE.read_text()
    without = ignore.replace("!deploy/entrypoint\n", "")
    assert without != ignore
    assert not dockerfile.lets_through(Path("deploy/entrypoint"), without)
    assert not dockerfile.lets_through(Path("stream_vae/settings.py"), f"{ignore}stream_vae/set*\n")


@pytest.mark.parametrize(
    "path",
    [
        "deploy/compose/secrets/kafka_jaas.conf",
        ".git/config",
        ".venv/bin/python",
        "tests/conftest.py",
        "stream_vae/avro/__pycache__/walker.pyc",
    ],
)
def test_dockerignore_holds_back_secrets_and_what_no_image_needs(path):
    assert not dockerfile.lets_through(Path(path), dockerfile.IGNORE.read_text())
