"""Runs the tests of one of CPython's own test modules, by CPython or by the interpreter in plain mode. Needs no torch.

    python worker.py plain|cpython|list test.test_list OUTPUT [SECONDS per test] [ID ...]

Each test's setUp, method and tearDown, and every Python frame that starts below them, however it is started, is run by the
interpreter; unittest itself is not, so that it can judge. OUTPUT gets a line before and a line behind each test, which tells the
caller where a process died. With IDs, only these tests run.
"""

import os
import signal
import sys
import types
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = os.path.join(os.path.dirname(os.path.dirname(HERE)), "minicompile")
TRUSTED = os.path.dirname(unittest.__file__) + os.sep
DEPTH = 12  # frames of the host per frame of the program


def load_interpreter():
    """(World, native hook), without the rest of the package, which wants torch."""
    root = types.ModuleType("minicompile")
    root.__path__ = [os.environ.get("MINICOMPILE_NATIVE_DIR", PACKAGE), PACKAGE]
    sys.modules.setdefault("minicompile", root)
    from minicompile import _native
    from minicompile.capture.interp import World

    return World, _native


def plain(World, native):
    """call(function, *args): runs it, and all frames below it, in the interpreter."""

    from minicompile.capture.frame import NULL

    class Plain(World):
        def interprets(self, code):
            return super().interprets(code) and not code.co_filename.startswith(TRUSTED)

        def code_of(self, raw):
            return native.suspend(super().code_of, raw)

        def offered(self, code, function, slots, namespace, resumed):
            if code.co_filename.startswith((PACKAGE, HERE)):
                native.set_policy(code, native.NATIVE, nested=True)
                return NotImplemented
            if resumed or function is None or code.co_flags & 0x380 or code.co_filename.startswith(TRUSTED):
                return NotImplemented
            code = self.code_of(code)
            out = self.run_slots(code, function, [NULL if s is native.NULL else s for s in slots], namespace)
            return native.NULL if out is NotImplemented else out

    def call(function, *args):
        return native.capture(Plain().offered, function, *args)

    return call


class TookTooLong(BaseException):
    pass


class Judge(unittest.TestResult):
    """Writes what each test did, by its id; a test counts as what it did worst."""

    def __init__(self, out, seconds):
        super().__init__()
        self.out, self.seconds = out, seconds

    def startTest(self, test):
        super().startTest(test)
        self.outcome = "passed", ""
        print("start", test.id(), file=self.out, flush=True)
        if self.seconds:
            signal.signal(signal.SIGALRM, self.alarm)
            signal.setitimer(signal.ITIMER_REAL, self.seconds, 1)

    def alarm(self, *args):
        raise TookTooLong

    def stopTest(self, test):
        signal.setitimer(signal.ITIMER_REAL, 0)
        super().stopTest(test)
        print("done", test.id(), *self.outcome, sep="\t", file=self.out, flush=True)

    def worst(self, what, error):
        kind, value, _ = error
        try:
            text = " ".join(str(value).split())[:300]
        except Exception as e:
            text = f"(its text raises {type(e).__name__})"
        self.outcome = what, f"{kind.__name__}: {text}"

    def addError(self, test, error):
        if not hasattr(self, "outcome"):  # setUpModule or setUpClass
            print("start", test.id(), file=self.out, flush=True)
            self.worst("failed", error)
            print("done", test.id(), *self.outcome, sep="\t", file=self.out, flush=True)
            del self.outcome
        else:
            self.worst("failed", error)

    addFailure = addError

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.worst("failed", error)

    def addSkip(self, test, reason):
        self.outcome = "skipped", reason

    def addExpectedFailure(self, test, error):
        pass

    def addUnexpectedSuccess(self, test):
        self.outcome = "failed", "unexpected success"


def through(call, method):
    return lambda *args: call(method, *args)


def tests_of(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from tests_of(item)
        else:
            yield item


class Listed(unittest.TestCase):
    """A stand-in that passes."""

    def __init__(self, name):
        super().__init__("run")
        self.name = name

    def id(self):
        return self.name

    def run(self, result):
        result.startTest(self)
        result.stopTest(self)


def main(mode, module, output, seconds="0", *ids):
    from test import support

    support.use_resources = []
    suite = unittest.defaultTestLoader.loadTestsFromName(module)
    if ids:
        suite = unittest.TestSuite(t for t in tests_of(suite) if t.id() in ids)
    if mode == "list":
        suite = unittest.TestSuite(Listed(t.id()) for t in tests_of(suite))
    if mode == "plain":
        call = plain(*load_interpreter())
        sys.setrecursionlimit(sys.getrecursionlimit() * DEPTH)
        for name in ("_callSetUp", "_callTearDown", "_callTestMethod"):
            setattr(unittest.TestCase, name, through(call, getattr(unittest.TestCase, name)))
    with open(output, "a", encoding="utf-8", errors="backslashreplace") as out:
        suite.run(Judge(out, float(seconds)))
        print("end", file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
