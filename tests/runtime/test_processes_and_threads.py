"""Compiled functions where several threads or processes call them, what loading them changes in a process
(nothing), and what remains of those that are dropped (nothing)."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import compiler, compiles, counting, environment, run, run_fresh

BIG = "x = torch.linspace(-3, 3, 600_000).reshape(600, 1000)\n"


# ---- processes (F16) ------------------------------------------------------------------------------------

@pytest.mark.parametrize("function", ["g", "minicompile.compile(lambda x: torch.relu(x @ x.T).sum(0))"])
def test_fork_after_compile(function: str, tmp_path: Path) -> None:
    """The parent has OpenMP threads, which a forked process lacks."""
    out, _ = run(BIG + f"""
assert torch.get_num_threads() == 2
h = {function}
want = h(x)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    fresh = minicompile.compile(lambda x: x.exp() + 1)
    good = torch.equal(h(x), want) and torch.allclose(fresh(x), x.exp() + 1)
    sys.exit(0 if good else 3)
print(os.waitpid(pid, 0)[1], torch.equal(h(x), want), torch.get_num_threads())
""", environment(tmp_path))
    assert out == "0 True 2"


def test_a_fork_while_compiling_holds_no_lock(tmp_path: Path) -> None:
    """A process forked by another thread inherits the lock's descriptor; it must not inherit the lock."""
    env = environment(tmp_path, CXX=str(counting(tmp_path, 1)))
    out, _ = run(f"""
t = threading.Thread(target=right); t.start()
while not os.path.exists({str(tmp_path / "compiles")!r}): time.sleep(0.01)
pid = os.fork()
if pid == 0:
    time.sleep(8)
    os._exit(0)
t.join()
from minicompile.runtime import cache
begin = time.monotonic()
for file in cache.folder().glob("*.so"): file.unlink()
h = minicompile.compile(f)
print(right(h), time.monotonic() - begin < 5)
os.kill(pid, 9)
""", env)
    assert out == "True True" and compiles(tmp_path) == 2


def test_spawned_processes_and_data_loaders(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(f"""
import multiprocessing, sys, torch, minicompile
from torch.utils.data import DataLoader, Dataset
@minicompile.compile
def f(x): return torch.softmax(x.sin(), -1) * 2
{BIG}
class Data(Dataset):
    def __len__(self): return 8
    def __getitem__(self, i): return f(x[i * 10:(i + 1) * 10])
def child(queue): queue.put(float(f(x).sum()))
if __name__ == "__main__":
    want = f(x)
    got = torch.cat(list(DataLoader(Data(), batch_size=None, num_workers=2)))
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    p = multiprocessing.get_context("spawn").Process(target=child, args=(queue,))
    p.start()
    print(torch.allclose(got, want[:80]), abs(queue.get() - float(want.sum())) < 1e-2)
    p.join()
    print(p.exitcode)
""")
    env = environment(tmp_path)
    env.pop("TMPDIR", None)  # multiprocessing's sockets lie there, and their paths must be short
    done = run_fresh("", env, str(tmp_path / "program.py"))
    assert done.stdout.split() == ["True", "True", "0"], done.stdout + done.stderr


# ---- threads (F15) --------------------------------------------------------------------------------------

def test_threads_that_call_first(tmp_path: Path) -> None:
    """16 threads at once: half the same function, half one each, two shapes, a nested compiled call."""
    out, err = run("""
inner = minicompile.compile(lambda x: x.sin() * 2)
others = [minicompile.compile(lambda x, i=i: inner(x + i) - i) for i in range(8)]
wrong, start = [], threading.Barrier(16)
def work(i):
    y = x if i % 4 < 2 else x[:, :50]
    start.wait()
    for _ in range(20):
        got, want = (g(y), f(y)) if i < 8 else (others[i - 8](y), (y + i - 8).sin() * 2 - (i - 8))
        if not torch.allclose(got, want, atol=1e-5): wrong.append(i)
threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
for t in threads: t.start()
for t in threads: t.join()
print(wrong, len(handle_of(g).compilations))
""", environment(tmp_path))
    assert (out, err) == ("[] 2", "")


def test_the_number_of_threads_may_change_between_calls(tmp_path: Path) -> None:
    """Kernels that split rows or elements among threads compute each the same way."""
    out, _ = run(BIG + """
h = minicompile.compile(lambda x: (x @ x.T).tanh().sum())
def bits(): return [t.view(torch.int32) for t in (g(x), g2(x))]
first, total = bits(), h(x)
for n in (1, 2, 3, 1):
    torch.set_num_threads(n)
    assert all(map(torch.equal, bits(), first)), n
    assert torch.allclose(h(x), total)
    assert torch.get_num_threads() == n
print("same")
""", environment(tmp_path))
    assert out == "same"


# ---- what loading changes (F7) --------------------------------------------------------------------------

def test_the_floating_point_environment_is_untouched(tmp_path: Path) -> None:
    (tmp_path / "csr.cpp").write_text('extern "C" unsigned csr() { return __builtin_ia32_stmxcsr(); }\n')
    out, _ = run(f"""
import ctypes, subprocess
name = {str(tmp_path / "csr")!r}
subprocess.run(["g++", "-shared", "-fPIC", name + ".cpp", "-o", name + ".so"], check=True)
csr = ctypes.CDLL(name + ".so").csr
tiny = torch.full((8,), 1e-40)
CONTROL = ~0x3f  # without the sticky flags
def state():
    found = [csr() & CONTROL, (tiny * 0.5).tolist()]
    t = threading.Thread(target=lambda: found.append(csr() & CONTROL)); t.start(); t.join()
    return found
before = state()
halve = minicompile.compile(lambda x: x * 0.5)
ok = torch.equal(halve(tiny), tiny * 0.5) and right() and before[1][0] > 0
print(ok, state() == before)
torch.set_flush_denormal(True)
flushed = csr() & CONTROL
ok = torch.equal(halve(tiny), tiny * 0.5)
print(ok, csr() & CONTROL == flushed)
""", environment(tmp_path))
    assert out == "True True\nTrue True"


# ---- memory (F20) ---------------------------------------------------------------------------------------

def test_dropped_variants_leave_nothing(tmp_path: Path) -> None:
    """2,000 calls with 30 shapes where 8 variants are kept: memory, descriptors, mapped libraries and sources
    are those of the warm-up."""
    quick = compiler(tmp_path, '#!/bin/sh\nexec g++ "$@" -O0\n')
    out, _ = run("""
import gc, linecache, logging, random
logging.disable(logging.WARNING)  # that variants are dropped
random.seed(0)
def f(x): return x * 2 + 1
g = minicompile.compile(f)
xs = [torch.randn(n, 16) for n in range(2, 32)]
def state():
    gc.collect()
    files = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
    maps = [name for name in files if "/cache/" in name or "making-" in name]
    rss = int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
    return (len(os.listdir("/proc/self/fd")), len(maps), sum("<minicompile" in n for n in linecache.cache),
            len(handle_of(g).compilations), threading.active_count()), rss
def turn(calls):
    for i in range(calls):
        if i % 8 == 0: y = random.choice(xs)
        assert torch.allclose(g(y), f(y), atol=1e-6)
for y in xs: g(y)
turn(200)
seen = [state()]
for _ in range(3):
    turn(600)
    seen.append(state())
print(*seen, sep="\\n")
""", environment(tmp_path, CXX=str(quick), MINICOMPILE_ISA="scalar"))
    seen = [eval(line) for line in out.splitlines()]
    counts, rss = zip(*seen)
    assert len(set(counts)) == 1, out
    assert counts[0][1] <= 8 and counts[0][2] <= 8 and counts[0][3] <= 8, out
    assert rss[-1] - rss[0] < 12, out
