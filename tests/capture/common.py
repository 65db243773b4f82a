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
    """The codes of what was refused: where the program broke, or ran as in eager mode from there on."""
    refused = [p if kind == "refusal" else p.refusal for kind, p in c.events if kind in ("refusal", "break")]
    return [r.code for r in refused]


def broken(c):
    """The refusal at which the program of the entry tried first ends."""
    entry = c.entries[0]
    return entry.refusal or entry.capture.broken
