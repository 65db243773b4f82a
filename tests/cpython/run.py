"""CPython's own tests of the language, run by the interpreter in plain mode and compared with CPython's run of them.

    python tests/cpython/run.py [--python PATH] [--write] [MODULE or ID ...]

Says which tests pass by CPython and not by ours, and which of these `expected.txt` doesn't list. Exit status 1 if there are such, or
if a listed one passes. `--write` adds the missing lines, without reasons. A process that dies or hangs fails the test it was running;
the others of its module go on in a new process.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
EXPECTED = os.path.join(HERE, "expected.txt")
WORKER = os.path.join(HERE, "worker.py")
PREFIX = "test.test_"
SECONDS = 60  # per test, and twice that for anything to be written at all

# Those that take a second or so each, for `make test`.
QUICK = (
    "augassign bool class compare contains decorators dict dictcomps enumerate except_star extcall generator_stop genexps global "
    "grammar index int_literal isinstance iter keywordonlyarg list listcomps metaclass named_expressions opcodes operator "
    "positional_only_arg property raise richcmp scope setcomps slice string_literals subclassinit super tuple unary unpack unpack_ex "
    "userdict userlist with yield_from").split()
MODULES = QUICK + (
    "abc abstract_numbers asyncgen baseexception binop bisect builtin bytes call cmath collections complex context contextlib "
    "contextlib_async copy copyreg coroutines dataclasses datetime decimal defaultdict deque descr descrtut dictviews difflib "
    "dynamic dynamicclassattribute enum exception_group exception_hierarchy exception_variations exceptions float flufl format "
    "fractions fstring funcattrs functools genericalias generators genericclass graphlib hash heapq int iterlen itertools json keyword "
    "long math memoryview numeric_tower opcache ordered_dict patma peepholer pep646_syntax pickle pow pprint print queue random range "
    "re reprlib set sort statistics string struct structseq syntax textwrap threading_local type_annotations typechecks types typing "
    "unicode userstring weakref weakset").split()


def run_module(python, mode, module, ids=()):
    """{id: (status, message)} of one module's tests."""
    results, skip_until_end, before, count = {}, False, None, 0
    folder = tempfile.mkdtemp(prefix="cpython-tests-")
    output = os.path.join(folder, "out")
    remaining = list(ids)
    while not skip_until_end:
        open(output, "w").close()
        command = [python, "-X", "faulthandler", WORKER, mode, PREFIX + module, output, str(SECONDS), *remaining]
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=open(os.path.join(folder, "err"), "w"), start_new_session=True)
        died = watch(process, output)
        running = None
        for line in open(output, encoding="utf-8", errors="replace"):
            what, _, rest = line.rstrip("\n").partition("\t" if line.startswith("done") else " ")
            if what == "start":
                running = rest
            elif what == "done":
                name, status, message = (rest.split("\t") + ["", ""])[:3]
                results[name], running = (status, message), None
            skip_until_end |= what == "end"
        if not skip_until_end:
            last = open(os.path.join(folder, "err"), errors="replace").read().strip().splitlines()
            if running is None and len(results) == count:
                results[PREFIX + module] = "failed", f"{died}: {' | '.join(last[-1:])}"
                break
            if running is not None:
                results[running] = "failed", f"the process {died}: {(last or [''])[0]}"
            count = len(results)
            if before is None:
                before = list(run_module(python, "list", module, ids))
            remaining = [i for i in before if i not in results]
            if not remaining:
                break
    return results


def watch(process, output):
    """Waits until the process ends, or writes nothing for too long. How it ended."""
    size, since = -1, time.time()
    while process.poll() is None:
        time.sleep(0.02)
        now = os.path.getsize(output)
        if now != size:
            size, since = now, time.time()
        if time.time() - since > 2 * SECONDS:
            os.killpg(process.pid, 9)
            process.wait()
            return "hung"
    return f"ended with status {process.returncode}"


def read_expected(version):
    """{id: reason} for this version; a line is `ID [versions]: reason`."""
    out = {}
    with open(EXPECTED, encoding="utf-8") as file:
        for line in file:
            if line.strip() and not line.startswith("#"):
                name, _, reason = line.strip().partition(": ")
                name, *versions = name.split(" ")
                if not versions or version in versions:
                    out[name] = reason
    return out


def compare(python, modules, report=print):
    """(tests that pass by CPython, those of them that fail by ours with messages, seconds of both)."""
    passed, failed, seconds = set(), {}, [0.0, 0.0]
    for module in modules:
        start = time.time()
        theirs = run_module(python, "cpython", module)
        middle = time.time()
        good = {name for name, (status, _) in theirs.items() if status == "passed"}
        ours = run_module(python, "plain", module, sorted(good) if good else ())
        seconds[0] += middle - start
        seconds[1] += time.time() - middle
        if PREFIX + module in ours.keys() - good:
            raise SystemExit(f"{module}: the worker {ours[PREFIX + module][1]}")
        bad = {n: ours.get(n, ("failed", "did not run")) for n in good}
        bad = {n: message or status for n, (status, message) in bad.items() if status != "passed"}
        passed |= good
        failed.update(bad)
        report(f"{module}: {len(good) - len(bad)} of {len(good)} ({middle - start:.1f} s, {time.time() - middle:.1f} s)")
    return passed, failed, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("modules", nargs="*")
    options = parser.parse_args()
    version = subprocess.run(
        [options.python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True, check=True
    ).stdout.strip()
    modules = options.modules or MODULES
    if os.path.realpath(options.python) != os.path.realpath(sys.executable):  # the hook, for that version
        sys.path.insert(0, os.path.join(os.path.dirname(HERE), "native"))
        from run_all import build

        folder = tempfile.mkdtemp(prefix="cpython-tests-native-")
        build(options.python, pathlib.Path(folder))
        os.environ["MINICOMPILE_NATIVE_DIR"] = os.path.join(folder, "minicompile")
    passed, failed, seconds = compare(options.python, modules, lambda text: print(text, flush=True))
    expected = read_expected(version)
    new = sorted(set(failed) - set(expected))
    shown = [f"{name}: {failed[name][:200]}" for name in new]
    fixed = sorted((set(expected) & passed) - set(failed))
    print(f"Python {version}: {len(passed) - len(failed)} of {len(passed)} tests that pass by CPython pass in the interpreter, "
          f"{100 * (1 - len(failed) / max(len(passed), 1)):.2f}%; {seconds[0]:.0f} s and {seconds[1]:.0f} s")
    for text, names in ("not in expected.txt", shown), ("in expected.txt, but passing", fixed):
        if names:
            print(f"{text}:", *names, sep="\n    ")
    if options.write:
        with open(EXPECTED, "a", encoding="utf-8") as file:
            file.writelines(f"{name}: ? {failed[name]}\n" for name in new)
    return bool(new or fixed)


if __name__ == "__main__":
    sys.exit(main())
