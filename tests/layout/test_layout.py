"""The tree, the packaging and the import rules, which no other test would notice to be broken."""

import ast
import configparser
import functools
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fcp_core.moved import MOVED
from fcp_core.plugins.discovery import hook_specs

ROOT = Path(__file__).parents[2]
PLAIN = ("platform", "plugins", "aggregators")
OURS = ("fcp_core", "fcp_platform", "fcp_plugins", "fcp_aggregators")


def setup_cfg():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def package_folders():
    """Map each of our import packages to its folder, as setup.cfg does."""
    lines = setup_cfg()["options"]["package_dir"].split("\n")
    pairs = [line.split("=") for line in lines if line.strip()]
    return {name.strip(): ROOT / folder.strip() for name, folder in pairs}


def modules_of(package, folder):
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join((package, *parts))
        yield name.removesuffix(".__init__"), path


@functools.cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def statements(path):
    """Return all statements of a file, which are few beside its nodes."""
    found = [*parsed(path).body]
    for node in found:  # grows
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            found += getattr(node, part, ())
    return found


# The tree.


@pytest.mark.parametrize("folder", PLAIN)
def test_plain_folders_hold_packages_only(folder):
    """An ``__init__.py`` in platform/ would hide the standard module from everything here."""
    loose = [path.name for path in (ROOT / folder).iterdir() if not path.is_dir()]
    assert loose == []


@pytest.mark.parametrize("folder", PLAIN)
def test_pytest_collects_nothing_in_plain_folders(folder):
    """Importing a test there would replace the standard ``platform`` for the rest of the run."""
    found = [
        path
        for pattern in ("test_*.py", "*_test.py", "conftest.py")
        for path in (ROOT / folder).rglob(pattern)
    ]
    own_distributions = [p for p in found if (p.parents[1] / "setup.cfg").exists()]
    allowed = [] if folder == "platform" else own_distributions
    assert [path for path in found if path not in allowed] == []


def test_the_standard_platform_module_is_the_standard_one():
    code = "import platform, uuid; print(platform.system())"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip()


def test_test_files_have_distinct_names():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


# The packaging.


def test_setup_cfg_lists_every_package():
    """An editable install finds a package that is not listed; a wheel lacks it."""
    listed = setup_cfg()["options"]["packages"].split()
    folders = package_folders()
    found = {
        name
        for package, folder in folders.items()
        for name, path in modules_of(package, folder)
        if path.name == "__init__.py"
    }
    assert sorted(folders) == sorted(OURS)
    assert sorted(listed) == sorted(found)


def test_every_folder_with_code_is_a_package():
    for folder in package_folders().values():
        for path in folder.rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path


def test_every_package_is_typed():
    for folder in package_folders().values():
        assert (folder / "py.typed").exists()


# The sizes.

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def too_large(path):
    """Yield the file's name if it is too long, and that of each function that is."""
    name = path.relative_to(ROOT).as_posix()
    if path.read_text(encoding="utf-8").count("\n") > MAX_FILE_LINES:
        yield name
    for node in statements(path):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        # From ``def``: the declarations of a command's options are decorators.
        if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES:
            yield f"{name}: {node.name}"


def test_files_and_functions_are_small():
    own = [path for folder in PLAIN for path in (ROOT / folder).glob("*/src")]
    found = {
        item
        for folder in (*package_folders().values(), *own)
        for path in folder.rglob("*.py")
        if not path.name.endswith("_pb2.py")
        for item in too_large(path)
    }
    assert found == set()


def test_test_files_are_small():
    folders = [
        ROOT / "tests",
        *(path for folder in PLAIN for path in (ROOT / folder).glob("*/tests")),
    ]
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in paths}
    assert lines
    assert [path.name for path in paths if lines[path] > MAX_FILE_LINES] == []


# The hooks.


def test_hooks_and_arguments_are_those_on_record():
    """Arguments may be added, with an entry here; removing or renaming one breaks plugins."""
    recorded = json.loads((ROOT / "tests" / "data" / "hooks.json").read_text(encoding="utf-8"))
    specs = hook_specs()
    assert recorded == {
        name: list(inspect.signature(specs[name]).parameters) for name in sorted(specs)
    }


@pytest.mark.parametrize("name", sorted(hook_specs()))
def test_every_hook_is_documented(name):
    text = inspect.getdoc(hook_specs()[name])
    assert text
    assert ".. versionadded:: " in text
    kinds = ("Registration", "Claim", "Veto", "Observer", "Life cycle")
    assert sum(f"{kind}; " in text or f"{kind}: " in text for kind in kinds) == 1
    for parameter in inspect.signature(hook_specs()[name]).parameters.values():
        assert parameter.default is parameter.empty


# The imports.

HEAVY = ("tornado", "asyncio", "sqlite3", "tensorflow", "tensorflow_federated", "jax")


def imported(code, *unwanted):
    """Return which of the unwanted modules a fresh process has after running *code*."""
    report = f"\nimport sys; print([name for name in {unwanted!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return ast.literal_eval(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("room", ["protocol", "aggregation", "rounds", "storage"])
def test_contracts_import_no_driver(room):
    names = [name for name, _ in modules_of(f"fcp_core.{room}", ROOT / "fcp_core" / room)]
    assert imported(f"import {', '.join(names)}", *HEAVY) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import fcp_core.server", ("tensorflow", "tensorflow_federated", "jax")),
        ("import fcp_core.client", ("tensorflow", "tensorflow_federated", "tornado")),
        ("import fcp_core.plugins.manager", ("tensorflow", "tornado", "sqlite3")),
        ("import fcp_aggregators.plugin", ("tensorflow", "tornado")),
        ("import fcp_plugins.plugin", ("tensorflow", "tornado")),
        ("import fcp_platform.plugin", ("tensorflow", "tensorflow_federated", "tornado")),
    ],
)
def test_heavy_modules_wait_until_they_are_used(code, unwanted):
    assert imported(code, *unwanted) == []


#: What each room of fcp_core may import from the others.
BELOW = {
    "errors": set(),
    "moved": set(),
    "protocol": {"errors"},
    "aggregation": {"errors", "protocol"},
    "rounds": {"errors", "protocol", "aggregation"},
    "storage": {"errors", "protocol", "aggregation", "rounds"},
    "plugins": {"errors", "protocol", "aggregation", "rounds", "storage"},
    "tasks": {"errors", "protocol", "aggregation", "rounds", "lab"},
    "admin": {"errors", "protocol", "aggregation", "rounds", "tasks"},
    "server": {
        *("errors", "protocol", "aggregation", "rounds", "storage", "plugins"),
        *("tasks", "admin"),
    },
    "client": {"errors", "protocol"},
    "lab": {"errors", "protocol", "aggregation", "rounds", "plugins"},
    "bench": {"errors", "protocol", "aggregation", "rounds", "admin", "client", "lab"},
    "testing": {
        *("errors", "protocol", "aggregation", "rounds", "storage", "plugins"),
        *("tasks", "admin", "server", "client", "lab"),
    },
}
#: The rooms whose modules import no driver, and the one that may import tornado.
NO_TORNADO = ("server/services", "plugins", "client", "lab", "tasks", "admin")


@functools.cache
def imports_of(path):
    """Return (module, name) of every import in a file; name is None for ``import module``."""
    found = []
    for node in statements(path):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(node.module, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("room", BELOW)
def test_imports_point_down(room):
    place = ROOT / "fcp_core" / room
    paths = place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]
    wrong = []
    for path in paths:
        for module, name in imports_of(path):
            parts = (f"{module}.{name}" if module == "fcp_core" else module).split(".")
            below = parts[0] not in OURS
            if parts[0] == "fcp_core":
                below = set(parts[1:2]) <= BELOW[room] | {room}
            if not below:
                wrong.append((path.name, module))
    assert wrong == []


def test_every_room_has_its_place():
    rooms = {
        path.stem
        for path in (ROOT / "fcp_core").iterdir()
        if (path.is_dir() and (path / "__init__.py").exists()) or path.suffix == ".py"
    }
    assert rooms - {"__init__", "__main__", "commands"} == set(BELOW)


def test_nothing_imports_the_commands():
    """They are on the roof: only ``python -m fcp_core`` and the installed script begin there."""
    wrong = [
        (name, module)
        for package, folder in package_folders().items()
        for name, path in modules_of(package, folder)
        if not name.startswith("fcp_core.commands") and name != "fcp_core.__main__"
        for module, alias in imports_of(path)
        if f"{module}.{alias}".startswith("fcp_core.commands")
    ]
    assert wrong == []


@pytest.mark.slow
def test_a_command_costs_nothing_until_it_is_used():
    """All commands are imported to list them, so each imports late what it needs."""
    rooms = [f"fcp_core.{room}" for room in BELOW if room not in ("errors", "moved")]
    heavy = (*HEAVY, *rooms, "numpy", "rich", "msgspec", "google.protobuf")
    assert imported("import fcp_core.commands.main", *heavy) == []


@pytest.mark.parametrize("room", NO_TORNADO)
def test_only_the_http_room_imports_tornado(room):
    wrong = [
        (path.name, module)
        for path in (ROOT / "fcp_core" / room).rglob("*.py")
        for module, _ in imports_of(path)
        if module.split(".")[0] == "tornado"
    ]
    assert wrong == []


@pytest.mark.slow
def test_moved_modules_are_found_under_their_old_names():
    for old, new in MOVED.items():
        code = f"import sys, {old}, {new}; print(sys.modules['{old}'] is sys.modules['{new}'])"
        result = subprocess.run(
            [sys.executable, "-W", "always", "-c", code],
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout == "True\n"
        assert f"import {new}" in result.stderr


@pytest.mark.parametrize("package", ["fcp_platform", "fcp_plugins", "fcp_aggregators"])
def test_plugins_use_public_names_only(package):
    wrong = []
    for _, path in modules_of(package, package_folders()[package]):
        imported_modules = {}
        for node in statements(path):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "fcp_core":
                private = [part for part in node.module.split(".") if _is_private(part)]
                private += [alias.name for alias in node.names if _is_private(alias.name)]
                wrong += [(path.name, node.module, name) for name in private]
                for alias in node.names:
                    imported_modules[alias.asname or alias.name] = node.module
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "fcp_core":
                        wrong += [(path.name, n) for n in alias.name.split(".") if _is_private(n)]
                        imported_modules[alias.asname or alias.name.split(".")[0]] = alias.name
        for node in ast.walk(parsed(path)):
            if (
                isinstance(node, ast.Attribute)
                and _is_private(node.attr)
                and isinstance(node.value, ast.Name)
                and node.value.id in imported_modules
            ):
                wrong.append((path.name, node.value.id, node.attr))
    assert wrong == []


def _is_private(name):
    return name.startswith("_") and not name.startswith("__")
