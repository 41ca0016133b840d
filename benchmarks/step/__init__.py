"""A training step: undistilled, from a teacher cache, with the teacher online."""
