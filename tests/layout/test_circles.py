"""No circles: of modules that import each other, nor of objects that are given each other later."""

import ast
import graphlib

from tests.layout.test_layout import (
    PLAIN,
    ROOT,
    imports_of,
    modules_of,
    package_folders,
    statements,
)


def all_modules():
    """Map the name of each module of ours to its file, those of other distributions too."""
    folders = [*package_folders().items()]
    for plain in PLAIN:
        for source in (ROOT / plain).glob("*/src"):
            folders += [(each.name, each) for each in source.iterdir() if each.is_dir()]
    return {name: path for package, folder in folders for name, path in modules_of(package, folder)}


def test_no_modules_import_each_other():
    """Nor do they by imports in functions or for types, which only hide a circle."""
    modules = all_modules()
    needs = {
        name: {
            target
            for module, alias in imports_of(path)
            for target in (f"{module}.{alias}", module)
            if target in modules and target != name
        }
        for name, path in modules.items()
    }
    # A package that imports its modules is imported before them, and not by them.
    needs = {
        name: {n for n in found if not name.startswith(f"{n}.")} for name, found in needs.items()
    }
    list(graphlib.TopologicalSorter(needs).static_order())  # raises CycleError with the circle


#: The reader has its inflater call it while it waits for that one, and no longer.
ALLOWED = ("inflater.on_piece",)
#: What other libraries want to have set.
NOT_OURS = {"function", "obj", "optionxform", "read_until_regex", "text_factory"}


def callables_set_from_outside(path, callables):
    """Yield where something sets a callable attribute of another object."""
    for node in statements(path):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            parts = target.elts if isinstance(target, ast.Tuple) else [target]
            for part in parts:
                if isinstance(part, ast.Attribute) and ast.unparse(part.value) not in (
                    "self",
                    "cls",
                ):
                    made = ast.unparse(node.value).startswith(("lambda", "partial("))
                    if (part.attr in callables or made) and part.attr not in NOT_OURS:
                        yield f"{node.lineno}: {ast.unparse(part)}"


def test_what_an_object_calls_is_given_to_it_when_it_is_made():
    """Or by a method that says so: whoever sets it later closes a circle of objects."""
    modules = all_modules()
    callables = {
        node.target.attr
        for path in modules.values()
        for node in statements(path)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Attribute)
        and "Callable[" in ast.unparse(node.annotation)
    }
    found = {
        f"{name}:{where}"
        for name, path in modules.items()
        for where in callables_set_from_outside(path, callables)
    }
    assert {each for each in found if not each.endswith(ALLOWED)} == set()
