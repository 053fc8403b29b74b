"""Images: decoding and resizing, the HDF5 shards, the order in which training sees them, pixels and grids."""
