"""Triton is an optional extra: text is emitted without it, and running or compiling says what to install."""
import subprocess
import sys

PROGRAM = '''
import sys
import torch
import minicompile
from minicompile.api import compile_anew
from minicompile.viz import cross

class Missing:
    """Triton, not installed."""
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
f = lambda x: torch.softmax(x + 1, -1)
x = torch.randn(8, 64)
compiled, handle = compile_anew(f, backend="triton", options={"stop": "aten"})
compiled(x)
(source,) = cross.sources_of(handle.compilations)
compile(source.text, "graph.py", "exec")
assert "@triton.jit" in source.text and not any(m.split(".")[0] == "triton" for m in sys.modules)
try:
    cross.cross(f, "sm_80")(x)
except minicompile.ToolchainError as e:
    print(e)
torch.testing.assert_close(minicompile.compile(f, backend="triton", fullgraph=True)(x), f(x))    # and warns
'''


def test_text_needs_no_triton_and_the_rest_says_what_to_install():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for told in (done.stdout, done.stderr):
        assert told.count("pip install minicompile[triton]") == 1, told
