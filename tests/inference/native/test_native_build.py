import os
import runpy
import shutil
import sys

import pytest

from small_doge.inference import native

COMPILERS = (os.environ.get("CXX", ""), "c++", "g++", "clang++")


def test_the_core_is_built_where_there_is_a_compiler() -> None:
    compiler = next((c for c in COMPILERS if c and shutil.which(c)), None)
    if compiler is None:
        pytest.skip("no C++ compiler on PATH: the package runs through torch here")
    assert native.is_available(), f"{compiler} is on PATH, but {native.reason()}"


def test_without_the_core_the_reason_names_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "small_doge.inference.native._core", None)
    without = runpy.run_path(str(native.__file__))
    assert not without["is_available"]()
    assert "install a C++17 compiler and reinstall small-doge" in without["reason"]()
