"""Paths in the public interface: a function that takes a path takes a text too."""

import importlib
import inspect
import pkgutil
import re

import pytest

import candid

# Components of an index, writers of exports and checks of folders are called by candid alone.
CALLED_BY_CANDID = {"candid.export", "candid.index", "candid.runs"}
PACKAGES = {f"candid.{one.name}" for one in pkgutil.iter_modules(candid.__path__) if one.ispkg}


def functions(package):
    """Yield the name and the function of all public functions, classes and methods."""
    for name in getattr(package, "__all__", []):
        member = getattr(package, name)
        if inspect.isfunction(member):
            yield name, member
        elif inspect.isclass(member):
            for method, function in vars(member).items():
                if method.startswith("_"):
                    continue
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function):
                    yield f"{name}.{method}", function


def refusals(package):
    for name, function in functions(package):
        for parameter, annotation in getattr(function, "__annotations__", {}).items():
            words = set(re.findall(r"[A-Za-z_]+", str(annotation)))
            if parameter != "return" and "Path" in words and "str" not in words:
                yield f"{name}({parameter}: {annotation})"


@pytest.mark.parametrize("name", sorted({"candid"} | PACKAGES - CALLED_BY_CANDID))
def test_parameter_of_a_path_takes_text(name):
    found = list(refusals(importlib.import_module(name)))
    assert not found, f"{name}: {', '.join(found)}"
