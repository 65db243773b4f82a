"""What runs at call time and where compiled code is kept: compiler lookup, disk cache, the native
launcher."""
