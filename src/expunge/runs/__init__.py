"""Run directories: manifest, events, tables, index, caches. No torch."""
