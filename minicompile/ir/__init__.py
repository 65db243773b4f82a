"""The nouns every stage shares: symbolic integers, tensor specs, the prim table, graphs and their
verifier. Imports nothing of minicompile but `errors` and `config`."""
