"""The figures of docs/reliability.md, one script after the other; prints their lines.

    python benchmarks/reliability/run.py [--full] [--system torch.compile] [--only F12]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# figure: (script and arguments, of the quick form; of the full one), minutes of the full form on two quiet cores
OURS = {
    "F1": ("fuzz", "--minutes 2 --seed 5000000", "--minutes 60 --seed 5000000"),
    "F3": ("stale.py", "--pairs 1", "--pairs 10"), "F4": ("inputs.py", "effects --every 5 --backend reference", "effects"),
    "F5": ("inputs.py", "errors --every 5", "errors"), "F6": ("sanitize.py", "--samples 0 --seeds 10", "--samples 2 --seeds 200"),
    "F6 threads": ("sanitize.py", "--tool thread --samples 0 --seeds 10", "--tool thread --samples 1 --seeds 200"),
    "F9-F19": ("faults.py", "", ""), "F12": ("storms.py", "rounds --count 10", "rounds --count 1000"),
    "F13": ("storms.py", "kills --count 20", "kills --count 1000"), "F20": ("soak.py", "--minutes 2", "--minutes 60"),
    "F21": ("guards.py", "", ""), "F22": ("../bench.py", "--startup", "--startup"), "F25": ("round_trips.py", "", ""),
    "F26": ("inputs.py", "bad --every 8 --backend reference", "bad"), "F26 huge": ("inputs.py", "huge --only expanded", "huge"),
    "F27": ("../../tests/runtime/test_passes.py", "6", "200"),
}
PEER = {
    "F3": ("stale.py", "--pairs 1", "--pairs 10"), "F4": ("inputs.py", "effects --every 9 --backend aot_eager", "effects"),
    "F5": ("inputs.py", "errors --every 9 --backend aot_eager", "errors"), "F9-F19": ("faults.py", "", ""),
    "F20": ("soak.py", "--minutes 2", "--minutes 60"), "F21": ("guards.py", "--sizes 1,100", ""),
    "F25": ("round_trips.py", "", ""), "F26": ("inputs.py", "bad --every 16 --backend aot_eager", "bad"),
}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--full", action="store_true")
    p.add_argument("--system", choices=("minicompile", "torch.compile"), default="minicompile")
    p.add_argument("--only", default="", help="figures whose name begins so")
    given = p.parse_args()
    failed = []
    for name, (script, quick, full) in (OURS if given.system == "minicompile" else PEER).items():
        if not name.startswith(given.only):
            continue
        words = (full if given.full else quick).split()
        command = [sys.executable, "-m", "minicompile", "fuzz"] if script == "fuzz" else [sys.executable, str(HERE / script)]
        if given.system != "minicompile":
            words += ["--system", given.system]
        print(f"== {name}: {script} {' '.join(words)}", flush=True)
        if subprocess.run([*command, *words], cwd=HERE.parents[1]).returncode:
            failed.append(name)
    print("failed: " + ", ".join(failed) if failed else "all as they should be")
    return 1 if failed and given.system == "minicompile" else 0


if __name__ == "__main__":
    sys.exit(main())
