"""The CRACK loss: its time, memory and error beside the dense published formula and plain tiling."""
