"""Hand-written Triton: what emitted kernels call (`ops`), its meaning under the interpreter
(`interpreted`), and templates for what loops do not do well."""
