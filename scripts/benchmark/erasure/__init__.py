"""scripts/bench erasure: blockd's erasure code beside ISA-L's functions called directly."""
