"""The data's way, one step a module: source, decode, stamp, encode, score, enrich, sink."""
