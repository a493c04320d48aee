"""Long sequences over several processes: attention in a ring, states handed on."""
