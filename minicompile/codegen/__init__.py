"""From a plan to code that runs: the shared walk (`walk`), C++ (`cpp`), the generated driver (`driver`)."""
