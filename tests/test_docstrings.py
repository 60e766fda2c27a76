"""Every public name of the package says what it is: functions and classes by ruff's rules, methods here, where a base
may speak."""

import importlib
import inspect
import pkgutil

import pytest

import eqcohvit

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(eqcohvit.__path__, "eqcohvit.")
    if not module.name.endswith(".app")  # pages of metrics
)


@pytest.mark.parametrize("name", MODULES)
def test_public_methods_have_docstrings(name):
    module = importlib.import_module(name)
    silent = [
        f"{kind.__name__}.{method}"
        for kind in vars(module).values()
        if inspect.isclass(kind) and kind.__module__ == name and not kind.__name__.startswith("_")
        for method, value in vars(kind).items()
        if not method.startswith("_") and (inspect.isroutine(value) or isinstance(value, property))
        if not inspect.getdoc(getattr(kind, method))
    ]
    assert not silent
