"""Training engines: `local` (one device); others are one file each."""
