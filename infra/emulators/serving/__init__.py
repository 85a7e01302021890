"""What every emulator here is served with, whatever service it imitates: its thread, faults, control port and journal.

It knows none of them.
"""
