"""What the capture tests share."""

from minicompile.capture.compiled import Compiled


def compiled(function, **settings):
    """`function` captured and served, its graph run eagerly; `.events` has what was reported."""
    events = []
    c = Compiled(
        function, checked, on_event=lambda kind, payload: events.append((kind, payload)), **settings
    )
    c.events = events
    return c


def checked(capture, examples):
    capture.check()
    return capture.gm


def refusals(c):
    return [payload.code for kind, payload in c.events if kind == "refusal"]
