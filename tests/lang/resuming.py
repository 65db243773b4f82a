"""Stops programs.py at random operations, and lets CPython do the operation and all that comes after, in functions made
from the frames' bytecode; prints each difference to a plain run. Reads every frame's locals on the way.

Needs no torch: `python resuming.py [seed [operations per program]]`."""

import os
import random
import sys
import types

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from runner import outcome  # noqa: E402


def libraries():
    root = types.ModuleType("minicompile")  # the package itself may want torch; these parts do not
    root.__path__ = [os.path.join(os.path.dirname(os.path.dirname(HERE)), "minicompile")]
    sys.modules.setdefault("minicompile", root)
    from minicompile.capture import interp, resume
    return interp.World, resume


class Everywhere:
    """Notes every instruction of a run."""

    def __init__(self):
        self.places = []

    def arm(self, frame):
        def noting(i, op):
            def run(f, arg):
                self.places.append((f.serial, i, f.laps))
                return op(f, arg)
            return run
        frame.ops = tuple((noting(i, op), arg) for i, (op, arg) in enumerate(frame.ops))


def stopped(world, resume, f, stop):
    """The point and the values where a run of `f` stops, or None."""
    world.stop, found = stop, None
    try:
        world.run_function(f, (), None)
    except resume.Stopped as error:
        found = error.frames
    except BaseException:
        return None
    if found is None:
        return None
    found[-1].pc += 1                                   # as if the operation had gone wrong
    stops = list(resume.stops(found))
    found[-1].pc -= 1
    if not stops or stops[0] != stop:
        return None
    try:
        return resume.break_at(found)
    except resume.Refusal:
        return None


def resumed(point, values):
    """The operation, and what comes after."""
    state = values[:point.width]
    error = None
    try:
        left = point.operation()(*state[point.slots], *values[point.width:])
    except BaseException as e:
        error = e
    if error is None:
        return point.rest(type(left) is list)(*state, *left)
    return point.raising()(*state, error)


def looked_at(f):
    """f() with every frame's locals read."""
    sys.setprofile(lambda frame, event, arg: frame.f_locals and None)
    try:
        return f()
    finally:
        sys.setprofile(None)


def differences(seed, count):
    from programs import PROGRAMS
    World, resume = libraries()
    chance, done, found = random.Random(seed), 0, []
    for f in PROGRAMS:
        expected = outcome(f)
        if outcome(f) != expected:
            continue
        world, everywhere = World(), Everywhere()
        world.stop = everywhere
        outcome(lambda: world.run_function(f, (), None))
        for place in chance.sample(everywhere.places, min(count, len(everywhere.places))):
            at = stopped(World(), resume, f, resume.Stop(*place))
            if at is None:
                continue
            done += 1
            got = outcome(lambda: looked_at(lambda: resumed(*at)))
            if got != expected:
                found.append((f.__name__, place, at[0].name, expected, got))
    return done, found


if __name__ == "__main__":
    sys.unraisablehook = lambda *args: None             # generators that were stopped half-way
    done, found = differences(*map(int, [*sys.argv[1:], *("0", "12")[len(sys.argv) - 1:]]))
    for line in found:
        print(*line, sep="\n   ")
    print(f"{sys.version.split()[0]}: resumed at {done} operations, {len(found)} differ")
    sys.exit(bool(found) or done < 100)
