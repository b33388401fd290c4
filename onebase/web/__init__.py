"""What the servers share: who may ask, and errors on the way."""
