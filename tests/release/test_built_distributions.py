"""What ``make dist`` makes: reproducible, complete, and good for an empty environment."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Of each kind one: the root's, one that is compiled, one with other files than Python's.
REBUILT = (".", "aggregators/secure_aggregation", "plugins/storage_postgres")


def load_tool():
    spec = importlib.util.spec_from_file_location("release_tool", ROOT / "tools" / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release = load_tool()


@pytest.fixture(scope="session")
def new_environment(tmp_path_factory):
    """Return a function that makes an empty environment and installs into it."""

    def make(*arguments):
        folder = tmp_path_factory.mktemp("environment")
        command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        subprocess.run(command, check=True)
        install(folder, *arguments)
        return folder / "bin"

    return make


def install(folder, *arguments):
    """Install into an environment with this one's pip."""
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    options = ["install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [*pip, *options, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def tools(new_environment):
    return new_environment("--no-deps", "-r", str(ROOT / "requirements" / "dist.txt"))


@pytest.fixture(scope="session")
def dist(tools, tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    build(tools, out)
    return out


def build(tools, out, *folders, **environment):
    subprocess.run(
        [tools / "python", ROOT / "tools" / "release.py", "build", out, *folders],
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000", **environment},
        cwd=out,
        check=True,
    )


def wheels(dist):
    return sorted(dist.glob("*.whl"))


@pytest.mark.slow
def test_each_distribution_has_an_sdist_and_a_wheel_of_which_twine_approves(tools, dist):
    names = {path.name.split("-")[0] for path in dist.iterdir()}
    assert len(names) == len(release.folders()) == len(wheels(dist))
    assert len(list(dist.glob("*.tar.gz"))) == len(names)
    check = [tools / "python", "-m", "twine", "check", "--strict", *dist.iterdir()]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_another_time_place_and_person_build_the_same_bytes(tools, dist, tmp_path):
    elsewhere = tmp_path / "a-folder-with-quite-another-name"
    elsewhere.mkdir()
    mask = os.umask(0o077)
    try:
        build(tools, tmp_path, *REBUILT, TMPDIR=str(elsewhere), TZ="Asia/Tokyo", LANG="C")
    finally:
        os.umask(mask)
    built = [path for path in tmp_path.iterdir() if path.is_file()]
    assert len(built) == 2 * len(REBUILT)
    for path in built:
        assert path.read_bytes() == (dist / path.name).read_bytes(), path.name


@pytest.mark.slow
def test_the_wheels_have_every_file_of_their_packages(dist):
    """An editable install finds what setup.cfg does not name; a wheel lacks it."""
    inside = {name for wheel in wheels(dist) for name in zipfile.ZipFile(wheel).namelist()}
    sources = [ROOT, ROOT / "platform", ROOT / "aggregators", ROOT / "plugins"]
    sources += [ROOT / folder / "src" for folder in release.folders() if folder != "."]
    packages = [path for source in sources for path in source.glob("fcp_*") if path.is_dir()]
    files = [
        path.relative_to(package.parent).as_posix()
        for package in packages
        if not package.name.endswith(".egg-info")
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".so", ".c")
    ]
    assert "fcp_core/py.typed" in files
    assert [file for file in files if file not in inside] == []


@pytest.mark.slow
def test_it_runs_in_an_empty_environment(new_environment, dist, tmp_path):
    pinned = ROOT / "requirements" / "dev.txt"
    constraints = ["-c", str(pinned)] if sys.version_info[:2] == (3, 11) else []
    binaries = new_environment("--find-links", str(dist), *constraints, "fcp-server")

    def run(*arguments):
        done = subprocess.run(
            [binaries / "fcp", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    version = release.current_version()
    assert run("--version") == f"fcp-server {version}\n"
    assert "serve" in run("--help")
    trained = run("demo", "--light", "--rounds", "3", "--devices", "6", "--contributions", "4")
    assert "after 3 rounds" in trained
    refused = subprocess.run(
        [binaries / "fcp", "demo"], cwd=tmp_path, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "fcp-server[tff]" in refused.stderr
    assert "fcp demo --light" in refused.stderr

    # Without what they require: commands are listed before anything of them is used.
    install(binaries.parent, "--no-deps", *map(str, wheels(dist)))
    packages = sorted(
        package.name
        for folder in release.folders()
        for package in (ROOT / folder / "src").glob("fcp_*")
        if (package / "__init__.py").exists()
    )
    code = f"import {', '.join(packages)}; print(fcp_webhook.__file__)"
    found = subprocess.run(
        [binaries / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout).is_relative_to(binaries.parent)
    assert "serve" in run("--help")


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The configuration of all distributions, somewhere else."""
    for folder in release.folders():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / folder / "setup.cfg", tmp_path / folder / "setup.cfg")
    shutil.copyfile(ROOT / "README.md", tmp_path / "README.md")
    (tmp_path / "docs" / "images").mkdir(parents=True)
    monkeypatch.setattr(release, "ROOT", tmp_path)
    return tmp_path


def test_one_command_sets_the_version_everywhere(copied):
    assert set(release.set_version("9.8.7")) == set(release.folders())
    for folder in release.folders():
        text = (copied / folder / "setup.cfg").read_text(encoding="utf-8")
        assert text.count("version = 9.8.7\n") == 1
        assert folder == "." or "fcp-server>=9.8,<10\n" in text
    assert "| fcp-server 9.8 |" in (copied / "README.md").read_text(encoding="utf-8")
    assert ">9.8.7<" in (copied / "docs/images/badges.svg").read_text(encoding="utf-8")
    assert release.set_version("9.8.7") == []
    with pytest.raises(ValueError, match=r"1\.2\.3"):
        release.set_version("9.8")


def test_the_readme_shows_this_version_and_true_badges():
    version = release.current_version().rpartition(".")[0]
    assert f"| fcp-server {version} |" in (ROOT / "README.md").read_text(encoding="utf-8")
    shown = (ROOT / "docs/images/badges.svg").read_text(encoding="utf-8")
    assert shown == release.badges(), "'make docs' draws them"
