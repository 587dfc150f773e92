"""The lecture's table with error bars: every config under several seeds, and what the runs say together."""
