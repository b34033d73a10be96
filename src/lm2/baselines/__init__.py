"""What a memory is compared with that is no model of its own."""
