"""For testing compilers, this one and others: bisection. May look at every stage; no stage imports it."""
