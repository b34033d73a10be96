"""Model architectures, one flat folder each: torch and transformers only, no I/O, no devices, no logging."""
