"""Beyond one process: starting several on this machine, a base spread over their devices, and checks beforehand."""
