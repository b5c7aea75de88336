"""Who acts: keys and DIDs, workload tokens, request signatures, tickets."""
