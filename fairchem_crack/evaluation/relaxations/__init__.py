"""`fairchem-crack evaluate-relaxations`: what `fairchem --mode run-relaxations` wrote, measured as IS2RE and IS2RS."""
