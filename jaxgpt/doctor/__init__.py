"""Checks of the installation and the machine. Each says what is wrong, and which command mends it."""
