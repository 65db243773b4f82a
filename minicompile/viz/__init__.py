"""What people look at: explanations and the demo. May look at every stage; no stage imports it."""
