"""`python -m fairchem_crack.teacher.label`."""

from fairchem_crack.teacher.label.command import main

if __name__ == "__main__":
    main()
