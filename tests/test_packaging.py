"""The built wheel, installed into an environment that has nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import pgplan
from pgplan.engines import exporter_names

ROOT = Path(pgplan.__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*words, cwd):
    # Nothing of the checkout may be seen from the new environment.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the source distribution, and from that the wheel, so both are complete."""
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation the build backend comes from the extra `test`, and nothing is fetched.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return the ``bin`` of a new environment with the wheel and none of its dependencies."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-index",
        "--no-deps",
        wheel,
        cwd=folder,
    )
    return python.parent


def test_it_plans_without_any_dependency(installed, tmp_path):
    words = ("plan", "llama-3.1-70b", "--gpu", "H200", "--pp", "4", "-o", "plan.json", "--svg", "plan.svg")
    assert "VLLM_PP_LAYER_PARTITION" in run(installed / "pgplan", *words, cwd=tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["fits"] is True
    assert (tmp_path / "plan.svg").read_text().startswith("<svg")
    exported = run(installed / "pgplan", "export", "plan.json", "--to", "sglang", cwd=tmp_path)
    assert "SGLANG_PP_LAYER_PARTITION" in exported


@pytest.mark.parametrize(
    ("command", "names"),
    [("models", pgplan.catalogue_names()), ("gpus", pgplan.gpu_names()), ("engines", exporter_names())],
)
def test_it_carries_its_data(command, names, installed, tmp_path):
    listed = json.loads(run(installed / "python", "-m", "pgplan", command, "--json", cwd=tmp_path))
    assert [row["name"] for row in listed] == list(names)


def test_it_is_the_installed_one_and_carries_notebooks_and_types(installed, tmp_path):
    code = "import pgplan; print(pgplan.__file__)"
    package = Path(run(installed / "python", "-c", code, cwd=tmp_path).strip()).parent
    assert package.is_relative_to(installed.parent)
    assert package.joinpath("py.typed").is_file()
    notebooks = sorted(path.name for path in ROOT.joinpath("notebooks").glob("*.ipynb"))
    assert notebooks
    assert sorted(path.name for path in package.joinpath("_notebooks").glob("*.ipynb")) == notebooks


def test_it_says_what_lab_needs(installed, tmp_path):
    done = subprocess.run(
        [installed / "pgplan", "lab"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "pgplan[lab]" in done.stderr


def test_version_and_metadata_agree(installed, tmp_path):
    code = "import pgplan, importlib.metadata as m; print(m.version('pgplan') == pgplan.__version__)"
    assert run(installed / "python", "-c", code, cwd=tmp_path).strip() == "True"
