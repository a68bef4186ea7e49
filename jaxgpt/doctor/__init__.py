"""Is this installation sound, and does JAX use the machine? What is wrong, and the line that mends it."""
