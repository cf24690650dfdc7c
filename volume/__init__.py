"""volume: versioned volumes on a data directory; knows no network."""
