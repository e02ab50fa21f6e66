"""Builds the distributions of this repository, and sets their version. See CONTRIBUTING.md.

    python tools/release.py build dist       sdists and wheels of all, in the folder dist
    python tools/release.py version 0.3.0    that version in every setup.cfg, and where it is shown
    python tools/release.py badges           the README's badges, from the root's setup.cfg

The same commit makes the same bytes, wherever and whenever it is built: files have the time of
``SOURCE_DATE_EPOCH`` (without it, of the last commit), and neither owners nor this machine's paths.
It needs nothing but the setuptools of the environment it runs in.
"""

from __future__ import annotations

import argparse
import configparser
import gzip
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: What the root's distribution is made of.
_ROOT_PARTS = (
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "fcp_core",
    "platform/fcp_platform",
    "aggregators/fcp_aggregators",
    "plugins/fcp_plugins",
)
#: What names the image, in ``deploy``.
_IMAGE_TAGS = ("compose.yaml", "kubernetes/kustomization.yaml")
#: The column of the README's comparison that is about us.
_README_CELL = re.compile(r"(\| fcp-server )\d[\d.]*( \|)")
_BADGES = "docs/images/badges.svg"
#: Of a badge: its height, the room at each side of a text, and of a letter, in pixels.
_HEIGHT, _ROOM, _LETTER = 20, 6, 6.6
#: What work in a checkout leaves behind.
_LEFT_BEHIND = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so", "build", "dist", ".*")

_BUILD = "import sys; from setuptools import build_meta; build_meta.{}(sys.argv[1])"


def folders() -> list[str]:
    """Return the folders of all distributions, the root's first."""
    found = {
        path.parent.relative_to(ROOT).as_posix()
        for plain in ("aggregators", "plugins")
        for path in ROOT.glob(f"{plain}/*/setup.cfg")
    }
    return [".", *sorted(found)]


def current_version() -> str:
    """Return the version of the root's distribution, which all others share."""
    (version,) = re.findall(r"(?m)^version = (.*)$", (ROOT / "setup.cfg").read_text("utf-8"))
    return str(version)


def default_epoch() -> int:
    """Return the time of the last commit, in seconds; without git, one that every archive has."""
    try:
        log = subprocess.run(
            ["git", "log", "-1", "--format=%ct"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return int(log.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return 315_619_200  # 1980-01-02; zip files know nothing before


def build(folder: str, out: Path, epoch: int) -> list[Path]:
    """Build the sdist of a distribution, and its wheel from that; return both.

    :param folder: one of :func:`folders`.
    :param epoch: the time that all files get, in seconds since 1970.
    :raises subprocess.CalledProcessError: if setuptools fails; its output has been written.
    """
    with tempfile.TemporaryDirectory(prefix="fcp-build-") as temporary:
        source, made = Path(temporary, "source"), Path(temporary, "made")
        made.mkdir()
        _copy(folder, source)
        _run("build_sdist", source, made, epoch)
        (sdist,) = made.glob("*.tar.gz")
        _normalise(sdist, epoch)
        unpacked = Path(temporary, "unpacked")
        shutil.unpack_archive(sdist, unpacked)
        (inside,) = unpacked.iterdir()
        _run("build_wheel", inside, made, epoch)
        out.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy2(path, out)) for path in sorted(made.iterdir())]


def _copy(folder: str, to: Path) -> None:
    if folder == ".":
        for part in _ROOT_PARTS:
            (to / part).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, to / part, ignore=_LEFT_BEHIND)
            else:
                shutil.copyfile(ROOT / part, to / part)
    else:
        shutil.copytree(ROOT / folder, to, ignore=_LEFT_BEHIND)
        if not (to / "LICENSE").exists():
            shutil.copyfile(ROOT / "LICENSE", to / "LICENSE")
    # Whoever checked out with another umask builds the same.
    for path in [to, *to.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def _run(what: str, source: Path, out: Path, epoch: int) -> None:
    environment = {
        **os.environ,
        "SOURCE_DATE_EPOCH": str(epoch),
        "PYTHONHASHSEED": "0",
        # The names of the folders do not get into compiled modules.
        "CFLAGS": f"{os.environ.get('CFLAGS', '')} -ffile-prefix-map={source}=.".strip(),
    }
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _BUILD.format(what), str(out)],
        cwd=source,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        umask=0o022,
    )


def _normalise(sdist: Path, epoch: int) -> None:
    """Write an sdist anew: sorted, and without owners, times and the archiver's own time."""
    with tarfile.open(sdist) as archive:
        members = sorted(archive.getmembers(), key=lambda member: member.name)
        contents = {
            member.name: file.read() for member in members if (file := archive.extractfile(member))
        }
    with (
        sdist.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for member in members:
            clean = tarfile.TarInfo(member.name)
            clean.type, clean.size, clean.mtime = member.type, member.size, epoch
            clean.mode = 0o755 if member.isdir() else 0o644
            archive.addfile(clean, io.BytesIO(contents.get(member.name, b"")))


def set_version(version: str) -> list[str]:
    """Write a version, and what requires it, into every ``setup.cfg``; return the folders changed.

    The image of ``deploy`` has it as its tag, and the README shows it.

    :raises ValueError: if it is no version of three numbers.
    """
    match = re.fullmatch(r"(\d+)\.(\d+)\.\d+", version)
    if match is None:
        raise ValueError(f"{version!r} is not of the form 1.2.3")
    major, minor = int(match[1]), int(match[2])
    # Before 1.0 a minor release may take deprecated names away.
    end = f"{major}.{minor + 1}" if major == 0 else f"{major + 1}"
    changed = []
    for folder in folders():
        path = ROOT / folder / "setup.cfg"
        before = path.read_text(encoding="utf-8")
        after = re.sub(r"(?m)^version = .*$", f"version = {version}", before, count=1)
        after = re.sub(
            r"(fcp-server[\w\[\]-]*)>=[\d.]+,<[\d.]+", rf"\g<1>>={major}.{minor},<{end}", after
        )
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(folder)
    for path in (ROOT / "deploy" / name for name in _IMAGE_TAGS):
        if path.exists():
            text = path.read_text(encoding="utf-8")
            text = re.sub(r"(fcp-server:|newTag: )\d[\d.]*", rf"\g<1>{version}", text)
            path.write_text(text, encoding="utf-8")
    readme = ROOT / "README.md"
    text = _README_CELL.sub(rf"\g<1>{major}.{minor}\g<2>", readme.read_text(encoding="utf-8"))
    readme.write_text(text, encoding="utf-8")
    (ROOT / _BADGES).write_text(badges(), encoding="utf-8")
    return changed


def badges() -> str:
    """Return the README's badges as one SVG: what the root's ``setup.cfg`` says, and no more."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    told = parser["metadata"]
    pythons = re.findall(r"Python :: (3\.\d+)", told["classifiers"])
    shown = [
        ("fcp-server", told["version"], "#0059a0"),
        ("Python", f"{pythons[0]} to {pythons[-1]}", "#00694d"),
        ("license", told["license"], "#6b4a7a"),
    ]
    parts, x = [], 0
    for label, value, colour in shown:
        for text, fill in ((label, "#444"), (value, colour)):
            width = round(len(text) * _LETTER) + 2 * _ROOM
            parts.append(f'<rect x="{x}" width="{width}" height="{_HEIGHT}" fill="{fill}"/>')
            # The length is said, so that any font fits.
            parts.append(
                f'<text x="{x + _ROOM}" y="14" textLength="{width - 2 * _ROOM}" '
                f'lengthAdjust="spacingAndGlyphs">{text}</text>'
            )
            x += width
        x += _ROOM
    title = ", ".join(f"{label} {value}" for label, value, _ in shown)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{x - _ROOM}" height="{_HEIGHT}" '
        f'role="img"><title>{title}</title>\n<g fill="#fff" font-family="sans-serif" '
        'font-size="11">\n' + "\n".join(parts) + "\n</g>\n</svg>\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="build all distributions, or those named")
    building.add_argument("out", type=Path, help="the folder that they go to")
    building.add_argument("folders", nargs="*", help="such as plugins/webhook; '.' is the root's")
    commands.add_parser("version", help="set the version of all").add_argument("version")
    commands.add_parser("badges", help="draw the README's badges")
    given = parser.parse_args(arguments)
    if given.command == "version":
        try:
            changed = set_version(given.version)
        except ValueError as error:
            parser.error(str(error))
        print("\n".join(changed) or "nothing to change")
        return
    if given.command == "badges":
        (ROOT / _BADGES).write_text(badges(), encoding="utf-8")
        return
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or default_epoch())
    unknown = sorted(set(given.folders) - set(folders()))
    if unknown:
        parser.error(f"no distribution is in {', '.join(unknown)}; they are in {folders()}")
    for folder in given.folders or folders():
        for path in build(folder, given.out, epoch):
            print(path)


if __name__ == "__main__":
    main()
