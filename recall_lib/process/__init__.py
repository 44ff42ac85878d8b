"""How a process of recall speaks, fails and ends. Everything may import this; it imports nothing of recall."""
