"""The sections of a run's config, a file each: keys, types, defaults, what rules a value out by itself."""
