"""`fairchem-crack bench`: how fast checkpoints are at what they are used for."""
