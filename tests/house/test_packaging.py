"""What is installed is whole, brings nothing else along, and works from any folder: as a wheel, and editable."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import uuid
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from orchestrator.store.redis import RedisStore

ROOT = Path(__file__).parents[2]
PACKAGES = ("orchestrator", "providers", "simcloud", "tasks", "workers")
BINARIES = Path(sys.executable).parent
FLEET = """\
version: 1
fleet: shop
provider: {name: fake}
target: {size: {memory: 2GiB, disk: 20GiB}}
servers: [{name: web-1, pools: [web]}]
traffic: {provider: fake, pools: {web: {port: 8080}}}
checks: {smoke: {requests: [{url: "http://shop.test/health"}], probe: fake}}
state: stateless
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build from, since building leaves folders behind; with strangers that must not come along."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests", "benchmarks"):
        (copy / name).mkdir()
        (copy / name / "__init__.py").touch()
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    uv("build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", str(out), str(source))
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that has Changeover, and what it depends on from this one."""
    home = tmp_path_factory.mktemp(request.param) / "venv"
    venv.create(home, symlinks=True, with_pip=False)
    site = next(home.glob("lib/python*/site-packages"))
    # The folder that a .pth file names is searched, but not for .pth files, one of which leads to this repository.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    what = ["--editable", str(source)] if request.param == "editable" else [str(request.getfixturevalue("wheel"))]
    uv("pip", "install", "--no-deps", "--no-build-isolation", "--python", str(home / "bin" / "python"), *what)
    return home / "bin"


def uv(*arguments: str) -> None:
    done = subprocess.run(
        [BINARIES / "uv", "--offline", "--no-config", "--no-cache", "--quiet", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr


def run(*command: str | Path, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CHANGEOVER", "PYTHON"))}
    return subprocess.run(
        command, cwd=folder, env={**environment, **more}, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path, source: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = {str(path.relative_to(source)) for name in PACKAGES for path in (source / name).rglob("*") if path.is_file()}
    assert inside == ours
    assert {f"{name}/py.typed" for name in PACKAGES} < inside
    assert {name.rpartition(".")[2] for name in inside} >= {"py", "lua", "j2"}


def test_only_our_packages_can_be_imported(installed: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, json, sys; "
        "print(json.dumps({n: (s := u.find_spec(n)) and s.origin for n in sys.argv[1:]}))"
    )
    said = run(installed / "python", "-P", "-c", code, *PACKAGES, "tests", "benchmarks", folder=tmp_path)
    found: dict[str, Any] = json.loads(said.stdout)
    assert found.pop("tests") is None and found.pop("benchmarks") is None
    assert all(place and not place.startswith(str(ROOT)) for place in found.values()), found


def test_the_command_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    said = run(installed / "changeover", "--help", folder=tmp_path)
    assert said.returncode == 0 and "rollback" in said.stdout
    (tmp_path / "fleet.yaml").write_text(FLEET.replace("version: 1", "version: 2"))
    said = run(installed / "changeover", "plan", "fleet.yaml", folder=tmp_path, HOME=str(tmp_path))
    assert said.returncode == 64 and "fleet.yaml:1" in said.stderr, said


def test_a_worker_and_a_plan_work_from_another_folder(installed: Path, tmp_path: Path, valkey_url: str) -> None:
    """With it come the scripts of the store, the entry points of the providers, and the tasks."""
    namespace = f"pack-{uuid.uuid4().hex[:8]}"
    (tmp_path / "fleet.yaml").write_text(FLEET)
    ours = {"CHANGEOVER_REDIS_URL": valkey_url, "CHANGEOVER_NAMESPACE": namespace, "CHANGEOVER_QUEUE": namespace}
    worker = subprocess.Popen(
        [installed / "changeover", "worker", "--name", "w1", "--concurrency", "1"],
        cwd=tmp_path,
        env={**os.environ, **ours, "CHANGEOVER_DEV": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    store = RedisStore(valkey_url, namespace=namespace, connections=2)
    try:
        end = time.monotonic() + 40
        while "w1" not in store.workers():
            assert worker.poll() is None, worker.communicate()[1]
            assert time.monotonic() < end, "the worker was never ready"
            time.sleep(0.05)
        said = run(installed / "changeover", "plan", "fleet.yaml", "--output", "json", folder=tmp_path, **ours)
        assert "there is no server web-1" in json.dumps(json.loads(said.stdout)), said
    finally:
        store.close()
        worker.terminate()
        worker.communicate(timeout=40)
