"""Guards on tensors and on torch's thread state, read natively; and the slower path through Python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from minicompile import _native as native  # noqa: E402


def function(*args):
    return args


def tensor_guard(example, *extents):
    return native.GuardProgram([("LOCAL", 0), ("TENSOR", 0, example, *extents)], [0])


def detail(program, tensor):
    miss = program.check(function, [tensor])
    return None if miss is None else miss[2]


class Special(torch.Tensor):
    pass


BASE = torch.ones(3, 4)
TENSORS = {
    "base": BASE,
    "another one alike": torch.zeros(3, 4),
    "transposed": torch.ones(4, 3).t(),
    "shape": torch.ones(3, 5),
    "dims": torch.ones(12),
    "six dims": torch.ones(1, 2, 3, 1, 2, 3),
    "seven dims": torch.ones(1, 2, 3, 1, 2, 3, 1),
    "six dims, other strides": torch.ones(1, 2, 3, 1, 3, 2).transpose(4, 5),
    "scalar": torch.ones(()),
    "empty": torch.ones(0, 4),
    "double": torch.ones(3, 4, dtype=torch.float64),
    "half": torch.ones(3, 4, dtype=torch.bfloat16),
    "int": torch.ones(3, 4, dtype=torch.int64),
    "meta": torch.ones(3, 4, device="meta"),
    "requires grad": torch.ones(3, 4, requires_grad=True),
    "has grad_fn": torch.ones(3, 4, requires_grad=True) * 2,
    "parameter": torch.nn.Parameter(torch.ones(3, 4)),
    "frozen parameter": torch.nn.Parameter(torch.ones(3, 4), requires_grad=False),
    "subclass": torch.ones(3, 4).as_subclass(Special),
    "conjugated": torch.ones(3, 4, dtype=torch.complex64).conj(),
    "complex": torch.ones(3, 4, dtype=torch.complex64),
    "offset": torch.ones(5, 4)[2:],
}
with torch.inference_mode():
    TENSORS["inference"] = torch.ones(3, 4)
ALIKE = [{"base", "another one alike", "offset"}, {"requires grad", "has grad_fn"}]


@pytest.mark.parametrize("name", TENSORS)
def test_tensor_guard(name):
    assert native.probe() is None
    program = tensor_guard(TENSORS[name])
    for other, tensor in TENSORS.items():
        same = name == other or any(name in group and other in group for group in ALIKE)
        assert (detail(program, tensor) is None) == same, other
        assert (program.fetch(function, [tensor]) is not None) == same
    for thing in (None, 3, [BASE], BASE.numpy()):
        assert detail(program, thing).startswith("type: ")


def test_the_detail_names_the_property():
    expected = {
        "double": "dtype: expected float32, found float64",
        "shape": "shape: expected (3, 4), found (3, 5)",
        "dims": "shape: expected (3, 4), found (12)",
        "transposed": "stride: expected (4, 1), found (1, 3)",
        "requires grad": "requires_grad: expected False, found True",
        "meta": "device: expected cpu:-1, found meta:-1",
        "parameter": "type: expected Tensor, found Parameter",
    }
    program = tensor_guard(BASE)
    assert {name: detail(program, TENSORS[name]) for name in expected} == expected
    assert detail(program, TENSORS["inference"]).startswith("dispatch keys: ")


def test_changes_in_place_are_seen():
    tensor = torch.ones(3, 4)
    program = tensor_guard(tensor)
    for change, undo in [
        (lambda: tensor.resize_(2, 2), lambda: tensor.resize_(3, 4)),
        (lambda: tensor.t_(), lambda: tensor.t_()),
        (lambda: tensor.requires_grad_(), lambda: tensor.requires_grad_(False)),
        (lambda: setattr(tensor, "data", torch.ones(7)), lambda: setattr(tensor, "data", torch.ones(3, 4))),
        (
            lambda: setattr(tensor, "data", torch.ones(3, 4).bfloat16()),
            lambda: setattr(tensor, "data", torch.ones(3, 4)),
        ),
    ]:
        assert detail(program, tensor) is None
        change()
        assert detail(program, tensor)
        undo()
    assert detail(program, tensor) is None


def test_parameters_on_a_tape():
    layer = torch.nn.Linear(3, 4)
    program = native.GuardProgram(
        [
            ("LOCAL", 0),
            ("DICT_ATTR", 0, "_parameters"),
            ("ITEM", 1, "weight"),
            ("TENSOR", 2, layer.weight),
            ("ITEM", 1, "bias"),
            ("TENSOR", 4, layer.bias),
        ],
        [2, 4],
    )

    def same():
        found = program.fetch(function, [layer])
        return found is not None and found[0] is layer.weight and found[1] is layer.bias

    for _ in range(3):
        assert same()
    layer.weight = torch.nn.Parameter(torch.zeros(4, 3))
    assert same() and same()
    layer.weight.data = torch.zeros(5, 3)
    assert program.check(function, [layer])[::2] == (3, "shape: expected (4, 3), found (5, 3)")
    layer.weight.data = torch.zeros(4, 3)
    assert same()
    layer.bias.requires_grad_(False)
    assert program.check(function, [layer])[::2] == (5, "requires_grad: expected True, found False")
    layer.bias = None
    assert program.check(function, [layer])[0] == 5
    layer.double()
    assert program.check(function, [layer])[0] == 3


def test_free_extents():
    program = tensor_guard(BASE, (None, 4), (4, 1))
    assert detail(program, torch.ones(7, 4)) is None and detail(program, torch.ones(7, 5))
    assert detail(program, torch.ones(7, 5)) == "shape: expected (*, 4), found (7, 5)"
    program = tensor_guard(torch.ones(2, 3, 4), (None, None, None), (None, None, 1))
    assert (
        detail(program, torch.ones(4, 5, 6)) is None
        and detail(program, torch.ones(4, 5))
        and detail(program, torch.ones(6, 5, 4).permute(2, 1, 0))
    )
    sizes = native.GuardProgram(
        [("LOCAL", 0), ("SIZE", 0, 1), ("STRIDE", 0, 0), ("RANGE", 1, 2, 9), ("EQUALS", 2, 4)], [1, 2]
    )
    assert sizes.fetch(function, [BASE]) == (4, 4) and sizes.fetch(function, [torch.ones(2, 10)]) is None
    assert sizes.check(function, [torch.ones(3)])[0] == 1 and sizes.check(function, ["ab"])[0] == 1
    for bad in ((1,), (None,) * 3, [None, None], 3):
        with pytest.raises(ValueError):
            tensor_guard(BASE, bad)


def test_what_cannot_be_guarded():
    with pytest.raises(TypeError, match="needs a tensor"):
        tensor_guard(3)
    with pytest.raises(ValueError, match="not strided"):
        tensor_guard(torch.eye(3).to_sparse())


def test_aliasing():
    base, other = torch.ones(10), torch.ones(10)
    sources = [("LOCAL", 0), ("LOCAL", 1)]
    apart = native.GuardProgram([*sources, ("NO_ALIAS", (0, 1))])
    shared = native.GuardProgram([*sources, ("SHARES", 0, 1)])
    for first, second, alias in [
        (base, other, False),
        (base, base[3:], True),
        (base, base, True),
        (base, other, False),
        (other, base, False),
        (base.detach(), base, True),
        (base, base.clone(), False),
    ]:
        for _ in range(2):
            assert (apart.check(function, [first, second]) is None) == (not alias)
            assert (shared.check(function, [first, second]) is None) == alias


AMBIENT = {
    "grad mode": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast cpu": lambda: torch.autocast("cpu"),
    "torch function modes": lambda: torch.device("meta"),
    "torch function": torch._C.DisableTorchFunctionSubclass,
}


@pytest.mark.parametrize("name", AMBIENT)
def test_ambient(name):
    program = native.GuardProgram([("AMBIENT",)])
    assert program.check(function, []) is None
    with AMBIENT[name]():
        index, _, text = program.check(function, [])
        assert index == 0 and (text.startswith(name) or name == "inference mode")
        inside = native.GuardProgram([("AMBIENT",)])
        assert inside.check(function, []) is None
    assert program.check(function, []) is None and inside.check(function, []) is not None


def test_ambient_settings():
    program = native.GuardProgram([("AMBIENT",)])
    with torch.autocast("cpu", dtype=torch.float16):
        half = native.GuardProgram([("AMBIENT",)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert half.check(function, []) is not None
    for change, undo in [
        (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
        (lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False)),
        (lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
    ]:
        change()
        try:
            assert program.check(function, []) is not None
        finally:
            undo()
        assert program.check(function, []) is None
    assert native.ambient()["grad mode"] == 1
    grad = native.GuardProgram([("GRAD_MODE", True)])
    assert grad.check(function, []) is None
    with torch.no_grad():
        assert grad.check(function, []) == (0, native.NULL, "")


def test_no_leaks():
    tensor = torch.ones(3, 4)
    compiled = native.CompiledFunction(lambda x: None, lambda *a: "miss")
    for _ in range(1000):
        compiled.entries[:] = [native.Entry(tensor_guard(tensor), lambda x: x)]
    before = sys.getrefcount(tensor), sys.getrefcount(torch.Tensor)
    for _ in range(10_000):
        compiled(tensor)
        compiled(1)
    assert (sys.getrefcount(tensor), sys.getrefcount(torch.Tensor)) == before


THROUGH_PYTHON = """
import sys
import torch
keep = torch._C._dispatch_keys
class Wrong:
    def __init__(self, tensor):
        self.keys = keep(tensor).raw_repr() ^ 1
    def raw_repr(self):
        return self.keys
torch._C._dispatch_keys = Wrong
import conftest
from minicompile import _native as native
f = lambda x: x
base = torch.ones(3, 4)
guards = native.GuardProgram([('LOCAL', 0), ('TENSOR', 0, base, (None, 4)), ('SIZE', 0, 0)], [0, 2])
assert isinstance(native.probe(), str), native.probe()
assert guards.fetch(f, [torch.ones(7, 4)])[1] == 7
for other in (torch.ones(7, 5), torch.ones(4, 7).t(), torch.ones(4), base.double(), torch.nn.Parameter(base),
              base.clone().requires_grad_(), 3):
    assert guards.fetch(f, [other]) is None, other
    assert guards.check(f, [other])[0] == 1 and guards.check(f, [other])[2]
apart = native.GuardProgram([('LOCAL', 0), ('LOCAL', 1), ('NO_ALIAS', (0, 1))])
assert apart.check(f, [base, base[1:]]) and apart.check(f, [base, base.clone()]) is None
print('fine')
"""


def test_through_python():
    """Where the probe finds native reading wrong (a torch of another layout) guards answer as before."""
    here = Path(__file__).parent
    command = [sys.executable, "-c", THROUGH_PYTHON]
    environment = {**os.environ, "PYTHONPATH": str(here)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.stdout.strip() == "fine", done.stderr


BESIDE_DYNAMO = """
import torch
from minicompile import _native as native
x = torch.ones(3)
def triple(x):
    return x * 3
def handler(code, function, localsplus, namespace, resumed):
    names.append(code.co_name)
    return NotImplemented
names = []
def miss(compiled, args, kwargs, slots):
    out = native.capture(handler, triple, *args)
    guards = native.GuardProgram([("LOCAL", 0), ("TENSOR", 0, args[0])], [0])
    compiled.entries.append(native.Entry(guards, triple))
    return out
compiled = native.CompiledFunction(triple, miss)
around = torch.compile(lambda x: compiled(x + 1) * 2, backend="eager")
for _ in range(3):
    assert around(x).tolist() == [12.0] * 3
assert compiled.entries[0].hits == 2 and len(compiled.entries) == 1 and names == ["triple"]
assert torch.compile(lambda x: x + 1, backend="eager")(x).tolist() == [2.0] * 3
assert not native.installed() and native.mode() == 0
print("fine")
"""


def test_beside_dynamo():
    """Another tool with an eval-frame function goes on working, and does not get our own code to compile."""
    pytest.importorskip("torch._dynamo")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{root}"}
    command = [sys.executable, "-c", "import conftest\n" + BESIDE_DYNAMO]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.stdout.strip() == "fine", done.stderr
