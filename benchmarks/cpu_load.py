"""Time to load and peak memory of the native CPU core, by size and weight type, each in a process of its own.

python benchmarks/cpu_load.py [--sizes 20M 60M 160M 320M] [--dtypes fp32 bf16 int8 int4] [--out results.json]

"checkpoint" packs the weights of an fp32 Hugging Face folder, "saved file" maps what `NativeModel.save` wrote; both end
with one token decoded. Peak memory is the resident set above an idle process that has imported the core; pages of a
mapped file count where they were touched. Linux only. The last line printed is the rows as JSON.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from cpu_decode import SIZES, new_table, random_checkpoint
from rows import finish

from small_doge.inference.native import DTYPES, NativeModel

# ru_maxrss would be the parent's at first: a child takes it over. /proc has the process's own, and sets it back.
CHILD = """
import sys, time
from pathlib import Path
from small_doge.inference.native import NativeModel
def kilobytes(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])
Path("/proc/self/clear_refs").write_text("5")
idle = kilobytes("VmRSS")
start = time.perf_counter()
core = NativeModel.load(sys.argv[1], sys.argv[2])
loaded = time.perf_counter() - start
session = core.new_session()
session.prefill([[0]])
session.decode(1)
print(loaded, (kilobytes("VmHWM") - idle) / 1e3)
"""


def one(path: Path, dtype: str) -> tuple[float, float]:
    """Seconds to load, and megabytes at the peak."""
    run = subprocess.run([sys.executable, "-c", CHILD, path, dtype], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, run.stdout.split())
    return seconds, megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    table = new_table("cpu_load")
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            random_checkpoint(size, folder)
            for dtype in args.dtypes:
                saved = folder / f"{dtype}.native"
                NativeModel.load(folder, dtype).save(saved)
                for name, path in {"checkpoint": folder, "saved file": saved}.items():
                    seconds, megabytes = zip(*(one(path, dtype) for _ in range(args.rounds)), strict=True)
                    table.add(f"{dtype}, {name}", size, "load seconds", seconds, ".4f")
                    table.add(f"{dtype}, {name}", size, "peak MB above idle", megabytes, ".1f")
                saved.unlink()
    finish(table.rows, args.out)


if __name__ == "__main__":
    main()
