"""transport: peers. Empty until there is more than one node (DESIGN section 8)."""
