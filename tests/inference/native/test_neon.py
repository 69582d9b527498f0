"""The NEON path, compiled for AArch64 and run under emulation; neon_driver.cpp holds it to the plain kernels."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

COMPILER, DISASSEMBLER, EMULATOR = "aarch64-linux-gnu-g++", "aarch64-linux-gnu-objdump", "qemu-aarch64"
PACKAGES = {COMPILER: "g++-aarch64-linux-gnu", EMULATOR: "qemu-user"}
MISSING = [package for program, package in PACKAGES.items() if not shutil.which(program)]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"the NEON kernels need a cross compiler and qemu: apt-get install {' '.join(MISSING)}"
)

ROOT = Path(__file__).parents[3]
CORE = ROOT / "src/small_doge/inference/native/core"
# What the compiler may use, and a processor that has no more than that.
TARGETS = {"armv8-a": "cortex-a53", "armv8.2-a+dotprod": "cortex-a76"}
ENTRIES = re.findall(r"\(\*(\w+)\)\(", (CORE / "kernels.hpp").read_text(encoding="utf-8"))


def sources_and_flags() -> tuple[list[Path], list[str]]:
    """What CMake compiles for AArch64 with GCC, but for the bindings, which need an AArch64 Python."""
    text = (ROOT / "cmake/CMakeLists.txt").read_text(encoding="utf-8")
    names = set(re.findall(r"\$\{core\}/(\w+)\.cpp", text)) - {"bindings", "kernels_avx2", "kernels_avx512"}
    flags = " ".join(re.findall(r"target_compile_options\(_core PRIVATE (-[^)]*)\)", text)).split()
    assert "kernels_neon" in names and "-O3" in flags
    release = ["-std=gnu++17", "-DNDEBUG", "-fPIC"]  # what CMake adds by itself
    return [CORE / f"{name}.cpp" for name in sorted(names)], [*release, "-DSMALL_DOGE_ARM64", *flags]


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(str(c) for c in command)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The driver linked with the core, a program for each target. Only the NEON kernels read what the target is."""
    folder = tmp_path_factory.mktemp("neon")
    sources, flags = sources_and_flags()
    least, most = TARGETS
    jobs = {folder / f"{source.stem}.o": (source, least, flags) for source in sources}
    jobs[folder / "neon_driver.o"] = (Path(__file__).parent / "neon_driver.cpp", least, ["-std=c++17", "-O1"])
    jobs[folder / f"{most}.o"] = (CORE / "kernels_neon.cpp", most, flags)

    def compile_one(out: Path) -> None:
        source, target, options = jobs[out]
        run(COMPILER, *options, f"-march={target}", "-Wall", "-Wextra", "-Werror", "-I", CORE, "-c", source, "-o", out)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, jobs))
    kernels = {least: folder / "kernels_neon.o", most: folder / f"{most}.o"}
    shared = [out for out in jobs if out not in kernels.values()]
    for target, own in kernels.items():
        run(COMPILER, "-static", "-pthread", *shared, own, "-o", folder / target)
    return {target: folder / target for target in TARGETS}


@pytest.fixture(scope="module")
def differences(programs: dict[str, Path]) -> dict[str, dict[str, tuple[float, float]]]:
    """For each target: of all that the driver compared, the largest difference and the largest that is allowed."""

    def compared(target: str) -> dict[str, tuple[float, float]]:
        lines = run(EMULATOR, "-cpu", TARGETS[target], programs[target]).splitlines()
        return {what: (float(worst), float(allowed)) for what, worst, allowed in (line.split("\t") for line in lines)}

    with ThreadPoolExecutor(len(TARGETS)) as pool:
        return dict(zip(TARGETS, pool.map(compared, TARGETS), strict=True))


@pytest.mark.parametrize("what", ["choice", *ENTRIES, "model"])
@pytest.mark.parametrize("target", TARGETS)
def test_neon_agrees_with_plain_kernels(
    target: str, what: str, differences: dict[str, dict[str, tuple[float, float]]]
) -> None:
    of_entry = {name: pair for name, pair in differences[target].items() if re.split("[ ,]", name)[0] == what}
    assert of_entry, f"neon_driver.cpp does not compare {what}"
    assert not {name: pair for name, pair in of_entry.items() if not pair[0] <= pair[1]}


@pytest.mark.parametrize("target", TARGETS)
def test_the_dot_product_instruction_is_used_only_where_the_target_has_it(
    target: str, programs: dict[str, Path]
) -> None:
    assert ("sdot" in run(DISASSEMBLER, "-d", programs[target])) == ("dotprod" in target)
