"""From loops to a plan: dependencies (`deps`), fusion (`fuse`), memory (`memory`). Every decision is a
pure function that gives a reason."""
