"""Three clouds on one machine: each lane on its own cloud's queue, played by that cloud's emulator."""
